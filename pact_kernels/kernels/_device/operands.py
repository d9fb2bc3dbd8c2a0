"""What kernels take, grouped: Triton passes a NamedTuple as its fields, at no cost on the device.

Fields named as the compiler's own tuples name theirs (`values`, `type`) cannot be read there. A
field that is None is known to the compiler, which leaves out what depends on it; a tuple that is
a `tl.constexpr` as a whole is known to it altogether. `pact_kernels.types.Head` is an operand too:
its weight a `Matrix`, its bias a pointer or None, its softcap a number or None.

Triton before 3.9 launches a tensor descriptor as a parameter of its own alone: a kernel that may
get one for a matrix `x` takes `x_tiles` beside its `Layout` and puts the two together. Nor does it
compare a tuple that holds a None: whether there is one is asked of a field.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pact_kernels.types import Head


class Matrix(NamedTuple):
    """A matrix that a kernel reads or writes in tiles."""

    tiles: Any
    """A pointer, or a tensor descriptor whose block is the tile."""
    stride: int
    """Elements between rows."""
    columns: int

    @property
    def has_descriptor(self) -> bool:
        """Whether tiles are fetched by the bulk copy engine."""
        return not isinstance(self.tiles, Tensor)


class Layout(NamedTuple):
    """A matrix whose tiles are launched beside it."""

    stride: int
    columns: int


class ProductTile(NamedTuple):
    """How a tile of left (., D) @ right (., D)^T is formed."""

    rows: int
    """Rows of left."""
    columns: int
    """Rows of right."""
    width: int
    """The part of D that one step multiplies."""
    even_width: bool
    """Whether a step's width divides D; else its columns are masked."""
    left_descriptor: bool
    right_descriptor: bool
    precision: str
    """How fp32 operands are multiplied, see `configs.dot_precision`."""


class Softmax(NamedTuple):
    """What makes probabilities of a row's logits: P_v = exp(z_v - max) / sum_exp."""

    max: Any
    """(N,) fp32"""
    sum_exp: Any
    """(N,) fp32"""


class Selected(NamedTuple):
    """Logits of K selected tokens, or what they are formed from."""

    inputs: Any
    """(N, D) states where the head has a weight, else (N, K) logits; a `Matrix` on the device."""
    head: Head
    """(K, D)"""


class RowTensors(NamedTuple):
    """What each row brings besides logits, in the order of the rows; None is its neutral value."""

    token_weights: Any
    """(K,) shared by the rows; those below 0 count as 0."""
    step: Any
    """(N,) int"""
    row_weight: Any
    """(N,)"""
    row_grad: Any
    """(N,)"""
    full_lse: Any
    """(N,)"""
    post_lse: Any
    """(N,)"""
    target: Any
    """(N,) int64; rows of ignore_index come out 0."""
    ignore_index: int


class MixedTarget(NamedTuple):
    """A KL over the vocabulary before the student's log-sum-exp is known."""

    student: Any
    """(N, K) fp32, its logits"""
    mixed: Any
    """(N, K) fp32, the references' log-confidences mixed by the gate"""
    mixed_rest: Any
    """(N,) fp32, their log-rests mixed likewise"""
    gate: Any
    """(N,) fp32"""


NO_TARGET = MixedTarget(None, None, None, None)


class KlOut(NamedTuple):
    """What the KL's kernel fills; None is not written."""

    kl: Any
    """(N,) fp32, times row_weight."""
    gate: Any
    """(N,) fp32"""
    grad_hidden: Any
    """(N, D) like hidden; a `Matrix` on the device."""
    gradient: Any
    """(N, K) fp32, see `launch_pact_kl`."""


class SparseKl(NamedTuple):
    """What the KL adds to a chunk's gradient."""

    token_ids: Any
    """(K,) int64, or (M, K)."""
    ids_stride: int
    """Between rows' tokens: K, or 0 where all rows have the same."""
    sparse: Any
    """(M, K) fp32"""
    softmax_factor: Any
    """(M,) fp32, or None."""


NO_KL = SparseKl(None, 0, None, None)
