"""Chunks of raw products, and what the row kernels should make of them, in float64.

Legend: M chunk rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels._launch.configs import chunk_config
from pact_kernels.types import Head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 7  # odd
VOCABULARY = 301  # prime to 8 and 16, within one block
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "capped": {"softcap": 4.0},
    "scaled": {"logit_scale": -0.7},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "logit_scale": 1.3},
    "log-sum-exp": {"term": "logsumexp", "softcap": 4.0},
    "no term": {"term": "none"},
}


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """A head's numbers and a row loss: as it stands, a cross-entropy without extras."""

    term: str = "cross_entropy"
    ignore_index: int = -100
    softcap: float | None = None
    logit_scale: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def head(self, bias: Tensor | None, weight: Any = None) -> Head:
        """With a bias, and a weight where one is read."""
        return Head(weight, bias, self.softcap, self.logit_scale)

    @property
    def request(self) -> TermRequest:
        """The row loss alone."""
        return TermRequest(
            kind=self.term,  # type: ignore[arg-type]
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )


def two_blocks(dtype: torch.dtype, options: LossOptions) -> int:
    """A vocabulary of one block of the row kernels and a ragged one."""
    return chunk_config(dtype, crowded=options.softcap is not None).block + 37


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chunk(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, V) in rows of whole 16 bytes, one more between two of them, and NaN beyond V."""
    rows, vocabulary = values.shape
    multiple = 16 // dtype.itemsize
    stride = (-(-vocabulary // multiple) + 1) * multiple
    out = torch.full((rows, stride), torch.nan, dtype=dtype)[:, :vocabulary]
    return out.copy_(values)


def random_chunk(dtype: torch.dtype, rows: int = ROWS, vocabulary: int = VOCABULARY) -> Tensor:
    """Logits of a few units: softmax neither flat nor one-hot."""
    return chunk(3.0 * randn(rows, vocabulary), dtype)


def targets(rows: int, vocabulary: int, *, ignored: bool = True) -> Tensor:
    """(M,) int64: the first and the last token among them, and -100 every fourth row."""
    target = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(1))
    target[:2] = torch.tensor([0, vocabulary - 1])[:rows]
    if ignored:
        target[3::4] = -100
    return target


def logits(raw: Tensor, bias: Tensor | None, options: LossOptions) -> Tensor:
    """softcap * tanh(logit_scale (raw + bias) / softcap)."""
    z = (raw if bias is None else raw + bias.double()) * options.logit_scale
    return z if options.softcap is None else options.softcap * torch.tanh(z / options.softcap)


def row_terms(z: Tensor, target: Tensor | None, options: LossOptions) -> Tensor:
    """(M,) row losses of logits (M, V) beside the KL; of rows that are ignored, too."""
    lse = z.logsumexp(-1)
    if options.term == "none":
        return 0.0 * lse
    if options.term == "logsumexp" or target is None:
        return lse
    at_target = z.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    e = options.label_smoothing
    smoothed = e * (lse - z.mean(-1)) if e else 0.0
    return (1 - e) * (lse - at_target) + smoothed + options.z_loss * lse.square()
