"""Batches of similar length for inference, where the order does not matter and padding is waste."""

from __future__ import annotations

from collections.abc import Sequence


def length_batches(
    lengths: Sequence[int], batch_size: int | None = None, max_tokens: int | None = None
) -> list[list[int]]:
    """Cut the examples into batches, the longest first, so that memory runs out at once or never.

    Args:
        lengths: tokens of each example.
        batch_size: most examples in a batch.
        max_tokens: most positions in a batch, padding included: its longest example times its size.
            An example that is longer makes a batch of its own.

    Returns:
        Indices into `lengths`, every one in exactly one batch; equal lengths keep their order.
    """
    if batch_size is None and max_tokens is None:
        raise ValueError("batches need a limit, got neither batch_size nor max_tokens: give one")
    for name, limit in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}")
    batches: list[list[int]] = []
    size = 0  # most examples for the longest one of the current batch
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or len(batches[-1]) == size:
            batches.append([])
            by_tokens = max_tokens // max(lengths[index], 1) if max_tokens else len(lengths)
            size = max(1, min(by_tokens, batch_size or len(lengths)))
        batches[-1].append(index)
    return batches
