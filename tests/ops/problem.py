"""Random problems for the ops, in float64; tests cast them down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pact_kernels as pk


@dataclass
class Problem:
    """One set of inputs. N rows (kept), R positions, D hidden, V vocabulary, K selected."""

    hidden: Tensor  # (R, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    target: Tensor  # (R,), some of it -100
    token_ids: Tensor  # (K,)
    token_weights: Tensor  # (K,), a few of them negative
    step: Tensor  # (N,)
    states: pk.ReferenceStates  # (N, D) twice, (V, D)
    row_weight: Tensor  # (N,)

    def logits(self, **head: object) -> pk.ReferenceLogits:
        """The reference's values as a cache would hold them."""
        full, post, weight, _ = self.states
        with pk.implementation("naive"):
            return pk.ReferenceLogits(
                pk.selected_logits(full, weight, self.token_ids, **head),
                pk.selected_logits(post, weight, self.token_ids, **head),
                pk.linear_logsumexp(full, weight, **head),
                pk.linear_logsumexp(post, weight, **head),
            )

    def stored(self) -> tuple[Tensor, Tensor]:
        """(N, K) each row's most likely tokens of the reference and their log-confidences, as a
        teacher's file holds them; the least likely stands first in every other row."""
        full, _, weight, bias = self.states
        logits = full @ weight.T + (0.0 if bias is None else bias)
        values, ids = logits.log_softmax(-1).topk(self.token_ids.numel())
        return _every_other_reversed(ids), _every_other_reversed(values)


def _every_other_reversed(rows: Tensor) -> Tensor:
    reversed_rows = rows.clone()
    reversed_rows[::2] = rows[::2].flip(-1)
    return reversed_rows


def problem(
    rows: int = 37,  # no multiple of a chunk, of a vector or of a tile
    hidden: int = 19,
    vocabulary: int = 301,  # prime to 8 and 16
    selected: int = 11,
    *,
    ignored: float = 0.4,
    scale: float = 3.0,  # logits of a few units: softmax neither flat nor one-hot
    seed: int = 0,
) -> Problem:
    """A problem whose reference is a perturbed student, so that KLs are neither 0 nor huge."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    h = randn(rows, hidden)
    w = randn(vocabulary, hidden) * scale / hidden**0.5
    target = torch.randint(0, vocabulary, (rows,), generator=g)
    if ignored:
        target[torch.rand(rows, generator=g) < ignored] = -100
    keep = target != -100
    count = int(keep.sum())
    return Problem(
        hidden=h,
        weight=w,
        bias=randn(vocabulary),
        target=target,
        token_ids=torch.randperm(vocabulary, generator=g)[:selected].sort().values,
        token_weights=randn(selected) + 0.5,
        step=torch.randint(0, 30, (count,), generator=g),  # well past prefix and decay
        states=pk.ReferenceStates(
            h[keep] + 0.3 * randn(count, hidden),
            h[keep] + 0.6 * randn(count, hidden),
            w + 0.1 * randn(vocabulary, hidden),
        ),
        row_weight=torch.rand(count, generator=g, dtype=torch.float64) + 0.5,
    )
