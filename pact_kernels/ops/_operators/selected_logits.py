"""The operator of the selected logits and its backward: `pact_kernels::selected_logits`.

It sees the head's gathered rows (K, D); autograd scatters their gradient into the head.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.library import register, register_autograd
from pact_kernels.types import Head

ARGUMENTS = (
    "Tensor hidden, Tensor selected_weight, Tensor? selected_bias, float? softcap, "
    "float logit_scale, int workspace_bytes, str implementation"
)


def selected_logits(rows: Tensor, selected: Head) -> Tensor:
    """(N, D), (K, D) -> (N, K) fp32."""
    return _selected_logits(
        rows, *selected, workspace_bytes(rows.device), operator_implementation(rows)
    )


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
    implementation: str,
) -> Tensor:
    selected = Head(weight, bias, softcap, logit_scale)
    return backend("selected_logits", implementation).selected_logits(
        hidden, selected, limit_bytes=limit_bytes
    )


def _forward_fake(hidden: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty(
        (hidden.shape[0], weight.shape[0]), dtype=accumulator_dtype(hidden.dtype)
    )


def _gradients(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
    implementation: str,
    needs_grad: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return backend("selected_logits", implementation).selected_logits_backward(
        grad,
        hidden,
        Head(weight, bias, softcap, logit_scale),
        limit_bytes=limit_bytes,
        needs_grad=(needs_grad[0], needs_grad[1], needs_grad[2]),
    )


def _gradients_fake(
    grad: Tensor, hidden: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, needs_grad = accumulator_dtype(hidden.dtype), rest[-1]
    return (
        hidden.new_empty(hidden.shape if needs_grad[0] else (0,)),
        weight.new_empty(weight.shape if needs_grad[1] else (0,), dtype=dtype),
        weight.new_empty(weight.shape[:1] if needs_grad[2] else (0,), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    leaves = ctx.saved_tensors
    needs_grad = list(ctx.needs_input_grad[:3])
    gradients = _selected_logits_backward(grad, *leaves, *ctx.options, needs_grad)
    by_leaf = (
        gradient.to(leaf.dtype) if want else None
        for gradient, leaf, want in zip(gradients, leaves, needs_grad, strict=True)
    )
    return *by_leaf, *(None for _ in ctx.options)


_selected_logits = register("selected_logits", f"({ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_selected_logits_backward = register(
    "selected_logits_backward",
    f"(Tensor grad, {ARGUMENTS}, bool[] needs_grad) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
register_autograd("selected_logits", _backward, _setup_context)
