"""Liger-Kernel's fused linear cross-entropy: chunks of rows, gradients in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.full_kl import FullKlPeer, StatesLoss
from benchmarks.peers.peer import Setting

DISTRIBUTION = "liger-kernel"
FUNCTIONS = "liger_kernel.transformers.functional"
BUDGETS = (1, 4, 16)
"""A chunk's logits are at most as large as this many times the states; the default is 1."""


class _OnGpu:
    """Where its kernels run."""

    distribution = DISTRIBUTION

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return None if device.type == "cuda" else "its kernels are Triton's and need a GPU"


class Liger(_OnGpu, CrossEntropyPeer):
    """The setting `budget` sizes the chunks. In 16 bits a trainable head's gradient is summed over
    them in 16 bits too, by default, or in fp32: `accumulate`.
    """

    name = "Liger"
    caps_logits = True

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        rounded = case.trainable_head and case.dtype != "float32"
        sums = (None, "float32") if rounded else (None,)
        return [{"budget": budget, "accumulate": each} for budget in BUDGETS for each in sums]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        dtype = getattr(torch, setting["accumulate"]) if setting["accumulate"] else None
        fused = import_module(FUNCTIONS).liger_fused_linear_cross_entropy
        return partial(fused, softcap=softcap, accum_dtype=dtype, chunk_mem_const=setting["budget"])


class LigerFullKl(_OnGpu, FullKlPeer):
    """Its Jensen-Shannon divergence at beta 0, which is the KL to the teacher."""

    name = "Liger full-vocabulary KL"

    def load(self, inputs: Inputs) -> StatesLoss:
        fused = import_module(FUNCTIONS).liger_fused_linear_jsd

        def loss(hidden: Tensor, reference: Tensor) -> Tensor:
            made: Tensor = fused(
                hidden, inputs.weight, reference, inputs.reference_weight, jsd_beta=0.0
            )
            return made

        return loss
