"""Logits of a few tokens: one gather of the head's rows and one small product in fp32."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.chunked.slab import accumulator_dtype
from pact_kernels.implementation import is_naive, operator_implementation, workspace_bytes
from pact_kernels.ops.backend import backend
from pact_kernels.ops.library import register, register_autograd
from pact_kernels.ops.validation import autocast_inputs, check_head, check_numbers, check_tokens

ARGUMENTS = (
    "Tensor hidden, Tensor selected_weight, Tensor? selected_bias, float? softcap, "
    "float logit_scale, int workspace_bytes, str implementation"
)


def selected_logits(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """z_nk = softcap(logit_scale (hidden_n . weight[id_k] + bias[id_k])), formed in fp32.

    2 NDK flops: the other rows of the head are not read.

    Args:
        hidden: (N, D) or (B, L, D).
        weight: (V, D), like hidden.
        token_ids: (K,) int64, distinct.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.

    Returns:
        (N, K) or (B, L, K), fp32 (fp64 for fp64 inputs); differentiable by hidden, weight and bias.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also ids outside [0, V) or given
            twice.
    """
    check_head(hidden, weight, bias)
    check_numbers(softcap=softcap, logit_scale=logit_scale)
    token_ids = check_tokens(hidden, token_ids, weight.shape[0])
    if is_naive():
        from pact_kernels.naive.selected_logits import selected_logits as dense

        hidden, weight, bias = autocast_inputs(hidden, weight, bias)
        return dense(hidden, weight, token_ids, bias=bias, softcap=softcap, logit_scale=logit_scale)
    rows = hidden.reshape(-1, hidden.shape[-1])
    out = _selected_logits(
        *autocast_inputs(rows, *selected_rows(weight, bias, token_ids)),
        softcap,
        logit_scale,
        workspace_bytes(hidden.device),
        operator_implementation(hidden),
    )
    return out.reshape(*hidden.shape[:-1], token_ids.numel())


def selected_rows(
    weight: Tensor, bias: Tensor | None, token_ids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The head's rows of the selected tokens, (K, D) and (K,); autograd scatters gradients back."""
    rows = weight.index_select(0, token_ids)
    return rows, None if bias is None else bias.index_select(0, token_ids)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
    implementation: str,
) -> Tensor:
    return backend("selected_logits", implementation).selected_logits(
        hidden, weight, bias, softcap=softcap, logit_scale=logit_scale, limit_bytes=limit_bytes
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
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return backend("selected_logits", implementation).selected_logits_backward(
        grad,
        hidden,
        weight,
        bias,
        softcap=softcap,
        logit_scale=logit_scale,
        limit_bytes=limit_bytes,
        wanted=(wanted[0], wanted[1], wanted[2]),
    )


def _gradients_fake(
    grad: Tensor, hidden: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, wanted = accumulator_dtype(hidden.dtype), rest[-1]
    return (
        hidden.new_empty(hidden.shape if wanted[0] else (0,)),
        weight.new_empty(weight.shape if wanted[1] else (0,), dtype=dtype),
        weight.new_empty(weight.shape[:1] if wanted[2] else (0,), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    leaves = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _selected_logits_backward(grad, *leaves, *ctx.options, wanted)
    by_leaf = (
        gradient.to(leaf.dtype) if want else None
        for gradient, leaf, want in zip(gradients, leaves, wanted, strict=True)
    )
    return *by_leaf, *(None for _ in ctx.options)


_selected_logits = register("selected_logits", f"({ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_selected_logits_backward = register(
    "selected_logits_backward",
    f"(Tensor grad, {ARGUMENTS}, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
register_autograd("selected_logits", _backward, _setup_context)
