"""Slabs of raw products, and what the row kernels should make of them, in float64.

Legend: M slab rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.chunked.spec import HeadSpec
from pact_kernels.kernels.configs import slab_config

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 7  # odd
VOCABULARY = 301  # prime to 8 and 16, within one block
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "capped": {"softcap": 4.0},
    "scaled": {"logit_scale": -0.7},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "logit_scale": 1.3},
    "log-sum-exp": {"term": "logsumexp", "softcap": 4.0},
    "no term": {"term": "none"},
}


def head_spec(**options: Any) -> HeadSpec:
    """A cross-entropy without extras; a keyword replaces a part."""
    plain: dict[str, Any] = {
        "term": "cross_entropy",
        "ignore_index": -100,
        "softcap": None,
        "logit_scale": 1.0,
        "label_smoothing": 0.0,
        "z_loss": 0.0,
    }
    return HeadSpec(**{**plain, **options})


def two_blocks(dtype: torch.dtype, spec: HeadSpec) -> int:
    """A vocabulary of one block of the row kernels and a ragged one."""
    return slab_config(dtype, crowded=spec.softcap is not None).block + 37


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slab(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, V) in rows of whole 16 bytes, one more between two of them, and NaN beyond V."""
    rows, vocabulary = values.shape
    multiple = 16 // dtype.itemsize
    stride = (-(-vocabulary // multiple) + 1) * multiple
    out = torch.full((rows, stride), torch.nan, dtype=dtype)[:, :vocabulary]
    return out.copy_(values)


def random_slab(dtype: torch.dtype, rows: int = ROWS, vocabulary: int = VOCABULARY) -> Tensor:
    """Logits of a few units: softmax neither flat nor one-hot."""
    return slab(3.0 * randn(rows, vocabulary), dtype)


def targets(rows: int, vocabulary: int, *, ignored: bool = True) -> Tensor:
    """(M,) int64: the first and the last token among them, and -100 every fourth row."""
    target = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(1))
    target[:2] = torch.tensor([0, vocabulary - 1])[:rows]
    if ignored:
        target[3::4] = -100
    return target


def logits(raw: Tensor, bias: Tensor | None, spec: HeadSpec) -> Tensor:
    """softcap * tanh(logit_scale (raw + bias) / softcap)."""
    z = (raw if bias is None else raw + bias.double()) * spec.logit_scale
    return z if spec.softcap is None else spec.softcap * torch.tanh(z / spec.softcap)


def row_terms(z: Tensor, target: Tensor | None, spec: HeadSpec) -> Tensor:
    """(M,) row losses of logits (M, V) beside the KL; of rows that are ignored, too."""
    lse = z.logsumexp(-1)
    if spec.term == "none":
        return 0.0 * lse
    if spec.term == "logsumexp" or target is None:
        return lse
    at_target = z.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    e = spec.label_smoothing
    smoothed = e * (lse - z.mean(-1)) if e else 0.0
    return (1 - e) * (lse - at_target) + smoothed + spec.z_loss * lse.square()
