"""Logits of a few tokens: one gather of the head's rows and one small product in fp32."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.chunked import selected_logits as chunked
from pact_kernels.chunked.slab import accumulator_dtype
from pact_kernels.implementation import is_naive, workspace_bytes
from pact_kernels.ops.library import register, register_autograd
from pact_kernels.ops.validation import check_head, check_numbers, check_token_values, check_tokens

ARGUMENTS = (
    "Tensor hidden, Tensor selected_weight, Tensor? selected_bias, float? softcap, "
    "float logit_scale, int workspace_bytes"
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
    """z_nk = softcap(logit_scale (hidden_n . weight[id_k] + bias[id_k])), formed in fp32. 2 NDK flops.

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
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also ids outside [0, V) or given twice.
    """
    check_head(hidden, weight, bias)
    check_numbers(softcap=softcap, logit_scale=logit_scale)
    check_tokens(token_ids, None, weight.shape[0])
    if is_naive():
        from pact_kernels.naive.selected_logits import selected_logits as dense

        return dense(hidden, weight, token_ids, bias=bias, softcap=softcap, logit_scale=logit_scale)
    out = _selected_logits(
        hidden.reshape(-1, hidden.shape[-1]),
        *selected_rows(weight, bias, token_ids),
        softcap,
        logit_scale,
        workspace_bytes(hidden.device),
    )
    return out.reshape(*hidden.shape[:-1], token_ids.numel())


def selected_rows(
    weight: Tensor, bias: Tensor | None, token_ids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The head's rows of the selected tokens, (K, D) and (K,); autograd scatters their gradients back."""
    check_token_values(token_ids, None, weight.shape[0])
    return weight.index_select(0, token_ids), (
        None if bias is None else bias.index_select(0, token_ids)
    )


def _options(softcap: float | None, logit_scale: float, limit_bytes: int) -> dict[str, Any]:
    return {"softcap": softcap, "logit_scale": logit_scale, "limit_bytes": limit_bytes}


def _forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return chunked.selected_logits(hidden, weight, bias, **_options(*options))


def _forward_fake(hidden: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty(
        (hidden.shape[0], weight.shape[0]), dtype=accumulator_dtype(hidden.dtype)
    )


def _gradients(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.selected_logits_backward(grad, hidden, weight, bias, **_options(*options))


def _gradients_fake(
    grad: Tensor, hidden: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator_dtype(hidden.dtype)
    return (
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape, dtype=dtype),
        weight.new_empty(weight.shape[:1], dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias = ctx.saved_tensors
    by_hidden, by_weight, by_bias = _selected_logits_backward(
        grad, hidden, weight, bias, *ctx.options
    )
    return (
        by_hidden,
        by_weight.to(weight.dtype),
        None if bias is None else by_bias.to(bias.dtype),
        None,
        None,
        None,
    )


_selected_logits = register("selected_logits", f"({ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_selected_logits_backward = register(
    "selected_logits_backward",
    f"(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
register_autograd("selected_logits", _backward, _setup_context)
