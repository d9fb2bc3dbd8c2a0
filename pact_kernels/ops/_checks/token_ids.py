"""A look at the selected tokens and at weights: an operator, so that a traced graph keeps it.

On a CPU alone: elsewhere it would stall the device.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.ops._operators.library import register


def check_token_ids(
    token_ids: Tensor,
    token_weights: Tensor | None,
    vocabulary: int,
    row_weight: Tensor | None = None,
    target: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """token_ids (K,) or (N, K), distinct in a row and in [0, V); of token_weights (K,) one is
    positive; they and row_weight (N,) are finite, but for rows whose target (N,) is ignored.

    Raises:
        ValueError: they are not, and lie on a CPU.
    """
    if row_weight is None or target is None or target.numel() != row_weight.numel():
        target = None
    return _checked_token_ids(
        token_ids, token_weights, vocabulary, row_weight, target, ignore_index
    )


def _run(
    token_ids: Tensor,
    token_weights: Tensor | None,
    vocabulary: int,
    row_weight: Tensor | None,
    target: Tensor | None,
    ignore_index: int,
) -> Tensor:
    if token_ids.device.type == "cpu" and token_ids.numel():
        least, most = int(token_ids.min()), int(token_ids.max())
        if least < 0 or most >= vocabulary:
            raise ValueError(
                f"token_ids must lie in [0, {vocabulary}), got {least} to {most}: the tokens "
                "belong to another vocabulary"
            )
        ordered = token_ids.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise ValueError("token_ids must be distinct, got an id twice: take their torch.unique")
    _check_finite(token_weights, "token_weights")
    _check_finite(row_weight, "row_weight", None if target is None else target == ignore_index)
    if token_weights is not None and token_weights.device.type == "cpu":
        if not bool((token_weights > 0).any()):
            raise ValueError(
                "token_weights must have a positive entry, got none: the target of "
                "over='selection' would be empty"
            )
    return token_ids.clone()


def _check_finite(weights: Tensor | None, name: str, ignored: Tensor | None = None) -> None:
    if weights is None or weights.device.type != "cpu":
        return
    finite = weights.isfinite()
    if ignored is not None:
        finite |= ignored
    if not bool(finite.all()):
        at = int((~finite).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {float(weights[at])} at position {at}")


def _fake(token_ids: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(token_ids)


_checked_token_ids = register(
    "checked_token_ids",
    "(Tensor token_ids, Tensor? token_weights, SymInt vocabulary, Tensor? row_weight, "
    "Tensor? target, int ignore_index) -> Tensor",
    _run,
    _fake,
)
