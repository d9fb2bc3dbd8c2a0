"""Tensors to operands: descriptors where the target has them, and the tile of a product.

Legend: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pact_kernels.kernels._device.operands import Matrix, ProductTile
from pact_kernels.kernels._launch.configs import dot_precision
from pact_kernels.kernels._launch.runtime import descriptor, target_of, unit_stride
from pact_kernels.types import Head


class Tiles(Protocol):
    """The part of a configuration that cuts a product."""

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        ...

    @property
    def tokens(self) -> int:
        """Vocabulary entries of a tile."""
        ...

    @property
    def width(self) -> int:
        """Columns of the hidden size that one step multiplies."""
        ...


def matrix(tensor: Tensor, block: list[int] | None = None) -> Matrix:
    """(rows, columns), fetched in blocks where the target can and a block is given."""
    tiles = tensor if block is None else descriptor(tensor, block, target_of(tensor))
    return Matrix(tiles, tensor.stride(0), tensor.shape[1])


def in_unit_stride(head: Head) -> Head:
    """The head with neighbours in the last dimension neighbours in memory; copies where not."""
    bias = None if head.bias is None else unit_stride(head.bias)
    return head._replace(weight=unit_stride(head.weight), bias=bias)


def numbers(head: Head) -> Head:
    """The head's numbers as floats: an int would be compiled in."""
    softcap = None if head.softcap is None else float(head.softcap)
    return head._replace(softcap=softcap, logit_scale=float(head.logit_scale))


def without_weight(head: Head) -> Head:
    """What finishes logits: bias and numbers; the products are given."""
    return numbers(head)._replace(weight=None)  # type: ignore[arg-type]


def product(hidden: Tensor, head: Head, config: Tiles) -> tuple[Matrix, Head, ProductTile]:
    """Operands of hidden (N, D) @ weight (V, D)^T and its tile."""
    left = matrix(hidden, [config.rows, config.width])
    right = matrix(head.weight, [config.tokens, config.width])
    tile = ProductTile(
        rows=config.rows,
        columns=config.tokens,
        width=config.width,
        even_width=hidden.shape[1] % config.width == 0,
        left_descriptor=left.has_descriptor,
        right_descriptor=right.has_descriptor,
        precision=dot_precision(hidden),
    )
    return left, numbers(head)._replace(weight=right), tile  # type: ignore[arg-type]
