"""cut-cross-entropy: kernels that form no logits in memory, or a compiled dense formula."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module

import torch

from benchmarks.cases.case import Case
from benchmarks.peers.compiled import cannot_compile
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.peer import Setting


class CutCrossEntropy(CrossEntropyPeer):
    """The setting `impl` is "cce", the kernels, or "torch_compile".

    By default the kernels leave out gradients that 16 bits would hardly show (`filter_eps` "high");
    with None they are exact. Prompts they drop themselves. Their backward pass takes 16 bits alone.
    """

    name = distribution = "cut-cross-entropy"
    caps_logits = True
    compiles = True  # the kernels too: they sort the vocabulary by a compiled function

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return cannot_compile(device)

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        ways: list[Setting] = [{"impl": "torch_compile"}]
        if device.type == "cuda" and case.dtype in ("bfloat16", "float16"):
            ways += [{"impl": "cce", "filter_eps": eps} for eps in ("high", None)]
        return ways

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        options = {name: value for name, value in setting.items() if name != "rows"}
        function = import_module("cut_cross_entropy").linear_cross_entropy
        return partial(function, softcap=softcap, **options)
