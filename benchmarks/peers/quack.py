"""quack-kernels' chunked linear cross-entropy, written in CuTe's Python for Hopper and later."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch

from benchmarks.cases.case import Case
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.peer import Setting

CHUNKS = (2048, 4096, 8192)
"""Rows; its default is 4096."""
ALIGNMENT = 8
"""What its loads demand of N, D and V in 16 bits."""


class Quack(CrossEntropyPeer):
    """The setting `chunk` is a number of rows. `scaled_exp` None lets it choose the pipeline that
    keeps no logits, which it does on an H100 where V is a multiple of 128; False forbids it.
    """

    name = "quack"
    distribution = "quack-kernels"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "its kernels are CuTe's and need a GPU"
        if torch.cuda.get_device_capability(device) < (9, 0):
            return "its kernels need compute capability 9.0"
        if find_spec("cutlass") is None:
            return "nvidia-cutlass-dsl is not installed"
        if case.dtype not in ("bfloat16", "float16"):
            return "its kernels take 16 bits alone"
        for name, size in (("D", case.hidden), ("V", case.vocabulary)):
            if size % ALIGNMENT:
                return f"{name} must be a multiple of {ALIGNMENT}, and is {size}"
        if case.rows % ALIGNMENT and case.positions % ALIGNMENT:
            return f"rows must be a multiple of {ALIGNMENT}, and are {case.rows}"
        return None

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{"chunk": size, "scaled_exp": each} for size in CHUNKS for each in (None, False)]

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        counts = {"answers": case.rows, "all": case.positions}
        return [
            setting
            for setting in super().settings(case, device)
            if counts[setting["rows"]] % ALIGNMENT == 0
        ]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        function = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
        chunk, scaled = setting["chunk"], setting["scaled_exp"]
        return partial(function, chunk_size=chunk, use_scaled_exp=scaled)
