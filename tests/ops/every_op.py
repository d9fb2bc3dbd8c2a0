"""Every differentiable op by name, with options for each of its branches: one table for all tests.

Legend: D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pact_kernels as pk
from tests.ops.problem import Problem, problem
from tests.ops.rounded_problem import rounded

Op = Callable[[Tensor, Tensor, Tensor | None], Any]
"""An op as a function of hidden, weight (V, D) and bias (V,)."""


def every_op(p: Problem, dtype: torch.dtype = torch.float32) -> dict[str, Op]:
    """The ops on a problem's targets and tokens, beside references in `dtype`."""
    kept = (p.target != -100).nonzero().squeeze(1)
    states = pk.ReferenceStates(*(None if t is None else t.to(dtype) for t in p.states))
    weights = p.token_weights.to(dtype)
    kl = (p.token_ids, weights, p.step, states)
    wide = torch.promote_types(dtype, torch.float32)
    cached = (*kl[:3], pk.ReferenceLogits(*(t.to(wide) for t in p.logits() if t is not None)))

    def cross_entropy(**options: Any) -> Op:
        return lambda h, w, b: pk.linear_cross_entropy(h, w, p.target, bias=b, **options)

    def pact_kl(reference: Any = kl, **options: Any) -> Op:
        options = {"row_weight": p.row_weight, **options}
        return lambda h, w, b: pk.pact_kl(h[kept], w, *reference, bias=b, **options)

    def pact_loss(**options: Any) -> Op:
        options = {"row_weight": p.row_weight, "kl_weight": 1.7, **options}
        given = options.pop("given", kl)
        return lambda h, w, b: pk.pact_loss(h, w, p.target, *given, bias=b, **options)

    ids, confidences_of_teacher = p.stored()
    teacher = pk.ReferenceLogits(
        confidences_of_teacher.to(wide), None, torch.zeros(ids.shape[0], dtype=wide)
    )
    stored = (ids, None, p.step, teacher)

    def confidences(**options: Any) -> Op:
        return lambda h, w, b: pk.selected_confidences(h, w, p.token_ids, bias=b, **options)

    return {
        "linear_cross_entropy": cross_entropy(label_smoothing=0.1, z_loss=1e-3, softcap=10.0),
        "linear_cross_entropy by row": cross_entropy(reduction="none"),
        "linear_logsumexp": lambda h, w, b: pk.linear_logsumexp(h, w, bias=b, logit_scale=0.7),
        "selected_logits": lambda h, w, b: pk.selected_logits(
            h, w, p.token_ids, bias=b, softcap=5.0
        ),
        "selected_confidences": confidences(temperature=1.5),
        "confidences in the selection": confidences(over="selection", temperature=2.0),
        "pact_kl": pact_kl(softcap=10.0),
        "pact_kl by row, without a gate": pact_kl(reduction="none", gate=None),
        "pact_kl over the vocabulary": pact_kl(over="vocabulary"),
        "pact_kl over the vocabulary by row, cached": pact_kl(
            cached, over="vocabulary", reduction="none"
        ),
        "pact_loss": pact_loss(label_smoothing=0.1, z_loss=1e-3),
        "pact_loss by row": pact_loss(reduction="none"),
        "pact_loss over the vocabulary": pact_loss(over="vocabulary", softcap=10.0),
        "pact_loss over the vocabulary by row": pact_loss(over="vocabulary", reduction="none"),
        "pact_loss of a whole step": pact_loss(over="vocabulary", gate=None, num_items=96),
        "pact_loss of each row's tokens": pact_loss(
            given=stored, over="vocabulary", gate=None, softcap=10.0
        ),
        "pact_kl of each row's tokens by row": pact_kl(
            stored, over="vocabulary", gate=None, reduction="none", logit_scale=0.7
        ),
    }


NAMES = list(every_op(problem(rows=1, ignored=0.0)))


def small(dtype: torch.dtype = torch.float32) -> Problem:
    """Six rows, of which two are ignored, in values that `dtype` holds."""
    return rounded(dtype, rows=6, hidden=3, vocabulary=13, selected=4, ignored=0.3)


def leaves_of(
    p: Problem, dtype: torch.dtype = torch.float32, trained: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of hidden, weight and bias that ask for gradients."""
    return (
        p.hidden.to(dtype, copy=True).requires_grad_(),
        p.weight.to(dtype, copy=True).requires_grad_(trained),
        p.bias.to(dtype, copy=True).requires_grad_(trained),
    )


def value_of(out: Any) -> Tensor:
    """The differentiable value of what an op returned."""
    return out.loss if isinstance(out, pk.PactLoss) else out
