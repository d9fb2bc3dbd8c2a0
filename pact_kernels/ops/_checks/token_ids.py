"""A look at the ids of the selected tokens: an operator, so that a traced graph keeps it.

On a CPU alone: elsewhere it would stall the device.

Legend: V vocabulary, K selected tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.ops._operators.library import register


def check_token_ids(token_ids: Tensor, token_weights: Tensor | None, vocabulary: int) -> Tensor:
    """token_ids (K,) or (N, K), distinct in a row and in [0, V); of token_weights one is positive.

    Raises:
        ValueError: they are not, and lie on a CPU.
    """
    return _checked_token_ids(token_ids, token_weights, vocabulary)


def _run(token_ids: Tensor, token_weights: Tensor | None, vocabulary: int) -> Tensor:
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
    if token_weights is not None and token_weights.device.type == "cpu":
        if not bool((token_weights > 0).any()):
            raise ValueError(
                "token_weights must have a positive entry, got none: the target of "
                "over='selection' would be empty"
            )
    return token_ids.clone()


def _fake(token_ids: Tensor, token_weights: Tensor | None, vocabulary: int) -> Tensor:
    return torch.empty_like(token_ids)


_checked_token_ids = register(
    "checked_token_ids",
    "(Tensor token_ids, Tensor? token_weights, SymInt vocabulary) -> Tensor",
    _run,
    _fake,
)
