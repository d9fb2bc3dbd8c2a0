"""Batches of similar length, of which less is padding: sorted to infer, shuffled to train."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def bucketed_order(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int | Sequence[int],
    window: int = 32,
    strata: Sequence[bool] | np.ndarray | None = None,
) -> list[int]:
    """A random order whose batches hold examples of similar length.

    The examples are shuffled, sorted within windows of several batches, cut into batches, and the
    batches are shuffled. What does not fill a batch is drawn at random and comes last, so that no
    length is more likely to be in a small batch.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch.
        seed: the order depends on it, the lengths and the sizes alone.
        window: batches that are sorted together; more make lengths within a batch closer, and the
            batches of an epoch less random.
        strata: which of two kinds each example is of; each batch has of either what its window has,
            to one example, and lengths are similar within a kind.

    Returns:
        Indices into `lengths`, every one once; batch n is at n * batch_size.
    """
    for name, size in (("batch_size", batch_size), ("window", window)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    full = len(order) // batch_size * batch_size
    sizes = np.asarray(lengths)[order[:full]]
    # By window, then by length; the sort is stable, so equal lengths stay shuffled.
    windows = np.arange(full) // (window * batch_size)
    by_length = np.lexsort((sizes, windows))
    if strata is not None:
        kinds = np.asarray(strata)[order[:full]][by_length]
        by_length = by_length[np.lexsort((_places(2 * windows + kinds), windows))]
    batches = order[:full][by_length].reshape(-1, batch_size)
    batches = batches[generator.permutation(len(batches))]
    return [*batches.ravel().tolist(), *order[full:].tolist()]


def _places(groups: np.ndarray) -> np.ndarray:
    """Where each entry stands among those of its group, in (0, 1)."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    by_group = np.argsort(group, kind="stable")
    ranks = np.empty(len(groups))
    ranks[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return (ranks + 0.5) / sizes[group]
