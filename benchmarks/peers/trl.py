"""TRL's log-probabilities and distillation from hidden states, in tiles of rows and vocabulary.

Its trainers use both, without a function that a user could call: what is taken here are the two
autograd functions, called as the trainers call them. On a GPU their tiles are read by Triton
kernels, on a CPU by torch. Both form every tile again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.full_kl import FullKlPeer, StatesLoss
from benchmarks.peers.peer import Setting

DISTRIBUTION = "trl"
COLUMNS = {"cpu": (8192, 32768), "cuda": (8192, 32768, 131072)}
"""Columns of a tile, by device; its trainers have 32768."""
BACKWARD_IMPORTS = "trl.trainer.utils"
"""What a first backward pass would import, seconds long."""


class Trl(CrossEntropyPeer):
    """Rows: answer rows alone, as its trainers have it on a GPU: it knows no target to ignore.

    The setting `columns` is the width of a tile; no wider one than the vocabulary is tried.
    """

    name = "TRL"
    distribution = DISTRIBUTION
    ignores_targets = False
    caps_logits = True

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        widths = sorted({min(width, case.vocabulary) for width in COLUMNS[device.type]})
        return [{"columns": width} for width in widths]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        import_module(BACKWARD_IMPORTS)
        function = import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction
        options = 1.0, setting["columns"], softcap, 1.0, ()

        def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            logprobs: Tensor = function.apply(hidden, weight, None, target, *options)[0]
            return -logprobs.mean()

        return loss


class TrlFullKl(FullKlPeer):
    """Its generalised divergence at beta 0, which is the KL to the teacher."""

    name = "TRL full-vocabulary KL"
    distribution = DISTRIBUTION

    def load(self, inputs: Inputs) -> StatesLoss:
        import_module(BACKWARD_IMPORTS)
        function = import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction

        def loss(hidden: Tensor, reference: Tensor) -> Tensor:
            teacher = reference, inputs.reference_weight, None
            rows: Tensor = function.apply(hidden, inputs.weight, None, *teacher, 0.0)[0]
            return rows.mean()

        return loss
