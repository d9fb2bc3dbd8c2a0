"""A benchmark case: one op on one shape, and the tensors that every implementation of it is given.

Legend: B sequences, L positions of each, N answer rows, D hidden size, V vocabulary, K selected
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

OPS = (
    "linear_cross_entropy",
    "pact_kl",
    "pact_loss",
    "linear_logsumexp",
    "selected_confidences",
    "token_scores",
)
TRAINED = ("linear_cross_entropy", "pact_kl", "pact_loss")
"""Ops with a backward pass; the others are forward alone."""
CAPPED = ("linear_cross_entropy", "linear_logsumexp")
"""Ops whose cases may have a soft cap."""
IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed. Equal cases get equal tensors."""

    op: str
    """One of OPS."""
    sequences: int
    """B."""
    length: int
    """L; half of them are as many as a post-only input has."""
    hidden: int
    """D."""
    vocabulary: int
    """V."""
    dtype: str = "float32"
    """Type of states and heads, by torch's name."""
    prompt_share: float = 0.0
    """Positions of each sequence, from its start, that are no answer rows."""
    trainable_head: bool = False
    """Whether the head's gradient is asked for."""
    tokens: int = 50
    """K."""
    over: str = "vocabulary"
    """What the KL's confidences are normalised over."""
    cached: bool = False
    """Whether the reference comes as selected logits and log-sum-exps, in place of states."""
    gated: bool = True
    """Whether the KL's target is the mixture with the post-only reference."""
    peaked: bool = False
    """Logits as a trained model has them, from unsure of the target to sure of it."""
    softcap: float | None = None
    """Cap of the student's logits, in `CAPPED` ops."""

    def __post_init__(self) -> None:
        if self.softcap is not None and self.op not in CAPPED:
            raise ValueError(f"a case with a soft cap is of {', '.join(CAPPED)}, got {self.op}")

    @property
    def positions(self) -> int:
        """B L."""
        return self.sequences * self.length

    @property
    def prompt_length(self) -> int:
        """Positions of each sequence that are no answer rows."""
        return round(self.prompt_share * self.length)

    @property
    def rows(self) -> int:
        """N."""
        return self.sequences * (self.length - self.prompt_length)


class Inputs(NamedTuple):
    """The tensors of one case. Positions are flattened; a row is one whose target is not IGNORE."""

    hidden: Tensor
    """(B L, D), requires a gradient where the op has one."""
    weight: Tensor
    """(V, D), requires a gradient where the case has a trainable head."""
    target: Tensor
    """(B L,) int64, already shifted."""
    reference_hidden: Tensor
    """(B L, D) the reference's states on the full context; for token_scores the base model's."""
    reference_post: Tensor
    """(B (L - prompt), D) its states on the post-only input, row by row."""
    reference_weight: Tensor
    """(V, D) the reference's head."""
    step: Tensor
    """(N,) int64, each row's step within its answer."""
    token_ids: Tensor
    """(K,) int64, sorted."""
    token_weights: Tensor
    """(K,)"""


def make_inputs(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
    """Tensors of a case, the same for the same case, device and seed.

    Random logits have a standard deviation of 2. Peaked ones belong to states that are close to
    their target's row of the head, some more than others: the target's logit is 8 to 16, the
    others' have a standard deviation below 1.
    """
    g = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    positions, width, vocabulary = case.positions, case.hidden, case.vocabulary

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    weight = (randn(vocabulary, width) * 2 / width**0.5).to(dtype)
    target = torch.randint(vocabulary, (positions,), generator=g, device=device)
    hidden = randn(positions, width)
    reference = hidden + 0.5 * randn(positions, width)
    if case.peaked:
        sure = 2 + 2 * torch.rand(positions, 1, generator=g, device=device)
        toward = sure * weight[target].float()  # |weight row|^2 is 4
        hidden, reference = toward + 0.25 * hidden, toward + 0.25 * reference
    target.view(case.sequences, case.length)[:, : case.prompt_length] = IGNORE
    kept = reference[target != IGNORE]
    post = kept + 0.5 * randn(case.rows, width)
    tokens = torch.randperm(vocabulary, generator=g, device=device)[: case.tokens].sort().values
    answer = torch.arange(case.length - case.prompt_length, device=device)
    return Inputs(
        hidden=hidden.to(dtype).requires_grad_(case.op in TRAINED),
        weight=weight.requires_grad_(case.op in TRAINED and case.trainable_head),
        target=target,
        reference_hidden=reference.to(dtype),
        reference_post=post.to(dtype),
        reference_weight=weight.detach().clone() if case.trainable_head else weight,
        step=answer.repeat(case.sequences),
        token_ids=tokens,
        token_weights=randn(case.tokens),
    )
