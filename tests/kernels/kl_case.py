"""One problem of the KL over the selection, and its calls: by the op, the launcher, on no device.

Legend: N rows, D hidden size, D' that of the reference, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.common.requests import KlRequest
from pact_kernels.common.results import SelectionKl
from pact_kernels.kernels._launch.runtime import TARGETS, Launch, recording
from pact_kernels.kernels.selection_kl import selection_kl
from pact_kernels.types import Head
from tests.ops.compare import outcome
from tests.ops.precision import assert_at_most_twice, near_a_jump


@dataclass(kw_only=True)
class Case:
    """Inputs in float64, whose values `dtype` holds exactly."""

    dtype: torch.dtype
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    token_ids: Tensor  # (K,)
    token_weights: Tensor  # (K,)
    step: Tensor  # (N,)
    states: pk.ReferenceStates  # (N, D'), (N, D'), (V, D'), (V,)
    logits: pk.ReferenceLogits  # (N, K) twice
    row_weight: Tensor  # (N,)
    head: dict[str, Any]

    def outcome(self, implementation: str, *, trained: bool = True, **options: Any) -> Any:
        """The KL and its gradients: in float64 if "exact", else in the case's dtype.

        A sum, unless told: rows by themselves run the kernel twice.
        """
        exact = implementation == "exact"
        dtype = torch.float64 if exact else self.dtype
        reference: Any = self.states if options.pop("source", "states") == "states" else self.logits
        reference = type(reference)(*(None if t is None else t.to(dtype) for t in reference))
        row_weight = self.row_weight if options.pop("weighted", False) else None
        options = {"reduction": "sum", **options}

        def call(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return pk.pact_kl(
                hidden,
                weight,
                self.token_ids,
                self.token_weights.to(dtype),
                self.step,
                reference,
                row_weight=row_weight,
                bias=bias,
                **self.head,
                **options,
            )

        leaves = (t.to(dtype) for t in (self.hidden, self.weight, self.bias))
        implementation = "naive" if exact else implementation
        return outcome(call, *leaves, implementation=implementation, trained=trained)

    def check(self, **options: Any) -> dict[str, Tensor]:
        """The kernels against eager torch; returns what the kernels gave."""
        got = self.outcome("triton", **options)
        eager, exact = (self.outcome(name, **options) for name in ("naive", "exact"))
        assert_at_most_twice(got, eager, exact, self.dtype)
        return got


def case(
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 18,  # in fp32 a tile of 16 rows and a ragged one; in 16 bits a part of a tile
    width: int = 72,  # a step of 64 and a ragged one, in rows of whole 16 bytes
    selected: int = 11,
    reference_width: int = 40,  # another model's
    *,
    gate: pk.GateConfig | None = pk.GateConfig(),  # noqa: B008  (frozen)
    **head: Any,
) -> Case:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(dtype).double()

    drawn = 2 * rows + 20  # rows near a jump are left out
    vocabulary = selected + 5
    hidden, weight = randn(drawn, width), randn(vocabulary, width, scale=2 * width**-0.5)
    full, post = randn(drawn, reference_width), randn(drawn, reference_width)
    other = randn(vocabulary, reference_width, scale=2 * reference_width**-0.5)
    bias, other_bias = randn(vocabulary), randn(vocabulary)
    ids = torch.randperm(vocabulary, generator=g)[:selected]
    with pk.implementation("naive"):
        student = pk.selected_logits(hidden, weight, ids, bias=bias, **head)
        known = [
            pk.selected_logits(s, other, ids, bias=other_bias, **head).to(dtype).double()
            for s in (full, post)
        ]
        exact_post = pk.selected_logits(post, other, ids, bias=other_bias, **head)
    clear = torch.ones(drawn, dtype=torch.bool)
    if gate is not None:
        clear = ~torch.stack([near_a_jump(x, gate) for x in (student, known[1], exact_post)]).any(0)
    at = clear.nonzero().squeeze(1)[:rows]
    assert at.numel() == rows
    weights = randn(selected) + 0.5
    weights[0] = 1.0  # one positive at least
    return Case(
        dtype=dtype,
        hidden=hidden[at],
        weight=weight,
        bias=bias,
        token_ids=ids,
        token_weights=weights.to(dtype).double(),
        step=torch.arange(rows) % 30,  # well past prefix and decay
        states=pk.ReferenceStates(full[at], post[at], other, other_bias),
        logits=pk.ReferenceLogits(known[0][at], known[1][at]),
        row_weight=torch.rand(rows, generator=g) + 0.5,
        head=head,
    )


def rows_of(c: Case, dtype: torch.dtype, **given: Any) -> tuple[Any, KlRequest]:
    """Positional arguments and options of the launchers, the reference as states."""
    full, post, other, other_bias = (t.to(dtype) for t in c.states)
    options = {
        "token_weights": c.token_weights.to(dtype),
        "step": c.step,
        "reference_full": full,
        "reference_post": post,
        "reference_head": Head(other, other_bias).select(c.token_ids),
        "full_lse": None,
        "post_lse": None,
        "row_weight": None,
        "gate": pk.GateConfig(),
        "over": "selection",
        "temperature": 2.0,
        "kl_weight": 1.0,
    }
    head = Head(c.weight.to(dtype), c.bias.to(dtype)).select(c.token_ids)
    return (c.hidden.to(dtype), head), KlRequest(**{**options, **given})


def selection(
    c: Case,
    *,
    trained: bool,
    row_grad: Tensor | None = None,
    limit_bytes: int = 1,
    **given: Any,
) -> SelectionKl:
    """The launcher itself; a keyword more replaces part of the options."""
    args, kl = rows_of(c, c.dtype, **given)
    return selection_kl(
        *args,
        kl=kl,
        row_grad=row_grad,
        needs_grad=(True, trained, trained),
        limit_bytes=limit_bytes,
    )


def recorded(
    c: Case,
    target: str = "sm_90",
    *,
    trained: bool = False,
    limit_bytes: int = 2**20,
    **given: Any,
) -> list[Launch]:
    """The launches of the launcher on meta tensors; a keyword more replaces part of the options."""
    args, kl = rows_of(c, c.dtype, **given)

    def nowhere(value: Any) -> Any:
        if isinstance(value, Head):
            return Head(*map(nowhere, value))
        if not isinstance(value, Tensor):
            return value
        tensor = value
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    fields = {name: nowhere(value) for name, value in vars(kl).items()}
    with recording(TARGETS[target]) as launches:
        selection_kl(
            *map(nowhere, args),
            kl=KlRequest(**fields),
            row_grad=None,
            needs_grad=(True, trained, trained),
            limit_bytes=limit_bytes,
        )
    return launches
