"""Liger-Kernel's fused linear cross-entropy: chunks of rows, gradients in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.full_kl import FullKlPeer, StatesLoss
from benchmarks.peers.peer import Setting

DISTRIBUTION = "liger-kernel"
BUDGETS = (1, 4, 16)
"""A chunk's logits are at most as large as this many times the states; the default is 1."""


def no_gpu(device: torch.device) -> str | None:
    """Why it does not run there."""
    return None if device.type == "cuda" else "its kernels are Triton's and need a GPU"


class Liger(CrossEntropyPeer):
    """The setting `budget` sizes the chunks. In 16 bits a trainable head's gradient is summed over
    them in 16 bits too, by default, or in fp32: `accumulate`.
    """

    name = "Liger"
    distribution = DISTRIBUTION
    caps_logits = True

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return no_gpu(device)

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        rounded = case.trainable_head and case.dtype != "float32"
        sums = (None, "float32") if rounded else (None,)
        return [{"budget": budget, "accumulate": each} for budget in BUDGETS for each in sums]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        fused = import_module(
            "liger_kernel.transformers.functional"
        ).liger_fused_linear_cross_entropy
        dtype = getattr(torch, setting["accumulate"]) if setting["accumulate"] else None
        budget = setting["budget"]

        def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            made: Tensor = fused(
                hidden,
                weight,
                target,
                softcap=softcap,
                accum_dtype=dtype,
                chunk_mem_const=budget,
            )
            return made

        return loss


class LigerFullKl(FullKlPeer):
    """Its Jensen-Shannon divergence at beta 0, which is the KL to the teacher."""

    name = "Liger full-vocabulary KL"
    distribution = DISTRIBUTION

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return no_gpu(device)

    def load(self, case: Case, inputs: Inputs, setting: Setting) -> StatesLoss:
        fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_jsd

        def loss(hidden: Tensor, reference: Tensor) -> Tensor:
            weights = inputs.weight, inputs.reference_weight
            made: Tensor = fused(hidden, weights[0], reference, weights[1], jsd_beta=0.0)
            return made

        return loss
