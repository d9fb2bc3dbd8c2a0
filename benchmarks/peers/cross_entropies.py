"""Peers that offer one thing: the cross-entropy of hidden states and a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import answer_rows, make_call, take
from benchmarks.peers.peer import Call, Peer, Setting, compile_now

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden (N, D), weight (V, D), target (N,) -> the mean over targets that are not IGNORE."""
HALVES = ("bfloat16", "float16")


class CrossEntropyPeer(Peer):
    """Rows: answer rows alone or, where it knows targets to ignore, all positions: both are tried.

    The setting `rows` says which, "answers" or "all".
    """

    ops = ("linear_cross_entropy",)
    ignores_targets: bool = True
    """Whether prompts may be given to it."""
    caps_logits: bool = False
    """Whether it takes a soft cap."""

    @abstractmethod
    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        """Its own settings, beside the rows."""

    @abstractmethod
    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        """Imports what it needs; a soft cap is given where `caps_logits`."""

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        reason = super().unavailable(case, device)
        uncapped = case.softcap is not None and not self.caps_logits
        return reason or ("it takes no soft cap" if uncapped else None)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        rows = ["answers"]
        if self.ignores_targets and case.prompt_length:
            rows.append("all")
        return [{"rows": each, **way} for each in rows for way in self.ways(case, device)]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        loss = self.load(setting, case.softcap)
        rows = answer_rows(case, inputs) if setting["rows"] == "answers" else None
        target = take(inputs.target, rows)
        call = make_call(
            case, inputs, lambda: loss(take(inputs.hidden, rows), inputs.weight, target)
        )
        return compile_now(call) if self.compiles else call


class TorchLinearCrossEntropy(CrossEntropyPeer):
    """torch.nn.functional.linear_cross_entropy, the op that torch itself has since 2.13.

    Without options it forms all logits; with them it goes over chunks of rows and forms its
    gradients in the forward pass. Its own choice of a chunk follows V / D, to as few as 6 rows for
    512 of the demo's model, and is slow on a CPU. So sizes are tried, the largest being all rows in
    one chunk. The setting `chunk` is None (no options), "auto" (its choice) or a number of rows.
    """

    name = "torch linear_cross_entropy"
    chunks = {"cpu": (128, 256, 512, 1024), "cuda": (1024, 2048, 4096, 8192)}
    """Rows, by device."""
    most_auto_logits = 128 * 65536
    """On a CPU its own choice is tried up to here: it does not depend on the rows, and is the
    slowest of all by several times."""

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return None
        return f"torch {torch.__version__} has no chunked linear_cross_entropy; 2.13 has"

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        sizes = sorted({min(size, case.rows) for size in self.chunks[device.type]})
        few = case.rows * case.vocabulary <= self.most_auto_logits
        auto = ["auto"] if few or device.type == "cuda" else []
        return [{"chunk": chunk} for chunk in (None, *auto, *sizes)]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        options, chunk = None, setting["chunk"]
        if chunk == "auto":
            options = torch.nn.LinearCrossEntropyOptions()
        elif chunk is not None:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return partial(functional.linear_cross_entropy, options=options)


class Liger(CrossEntropyPeer):
    """Liger-Kernel's fused loss: chunks of rows, gradients in the forward pass.

    The setting `budget` sizes the chunks: their logits are at most as large as this many times the
    states, by default 1. In 16 bits a trainable head's gradient is summed over them in 16 bits too,
    by default, or in fp32: `accumulate`.
    """

    name = "Liger"
    distribution = "liger-kernel"
    gpu_kernels = "Triton's"
    caps_logits = True

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        rounded = case.trainable_head and case.dtype != "float32"
        sums = (None, "float32") if rounded else (None,)
        return [{"budget": budget, "accumulate": each} for budget in (1, 4, 16) for each in sums]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        dtype = getattr(torch, setting["accumulate"]) if setting["accumulate"] else None
        functions = import_module("liger_kernel.transformers.functional")
        return partial(
            functions.liger_fused_linear_cross_entropy,
            softcap=softcap,
            accum_dtype=dtype,
            chunk_mem_const=setting["budget"],
        )


class CutCrossEntropy(CrossEntropyPeer):
    """cut-cross-entropy: the setting `impl` is "cce", kernels that form no logits in memory, or
    "torch_compile", a compiled dense formula.

    By default the kernels leave out gradients that 16 bits would hardly show (`filter_eps` "high");
    with None they are exact. Prompts they drop themselves. Their backward pass takes 16 bits alone.
    """

    name = distribution = "cut-cross-entropy"
    caps_logits = True
    compiles = True  # the kernels too: they sort the vocabulary by a compiled function

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        ways: list[Setting] = [{"impl": "torch_compile"}]
        if device.type == "cuda" and case.dtype in HALVES:
            ways += [{"impl": "cce", "filter_eps": eps} for eps in ("high", None)]
        return ways

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        options = {name: value for name, value in setting.items() if name != "rows"}
        function = import_module("cut_cross_entropy").linear_cross_entropy
        return partial(function, softcap=softcap, **options)


class Quack(CrossEntropyPeer):
    """quack-kernels' chunked loss, written in CuTe's Python for Hopper and later.

    The setting `chunk` is a number of rows, by default 4096. `scaled_exp` None lets it choose the
    pipeline that keeps no logits, which it does on an H100 where V is a multiple of 128; False
    forbids it.
    """

    name = "quack"
    distribution = "quack-kernels"
    gpu_kernels = "CuTe's"
    alignment = 8
    """What its loads demand of N, D and V in 16 bits."""

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        if torch.cuda.get_device_capability(device) < (9, 0):
            return "its kernels need compute capability 9.0"
        if find_spec("cutlass") is None:
            return "nvidia-cutlass-dsl is not installed"
        if case.dtype not in HALVES:
            return "its kernels take 16 bits alone"
        for name, size in (("D", case.hidden), ("V", case.vocabulary)):
            if size % self.alignment:
                return f"{name} must be a multiple of {self.alignment}, and is {size}"
        if case.rows % self.alignment and case.positions % self.alignment:
            return f"rows must be a multiple of {self.alignment}, and are {case.rows}"
        return None

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        chunks = (2048, 4096, 8192)
        return [{"chunk": size, "scaled_exp": each} for size in chunks for each in (None, False)]

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        counts = {"answers": case.rows, "all": case.positions}
        found = super().settings(case, device)
        return [setting for setting in found if counts[setting["rows"]] % self.alignment == 0]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        function = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
        chunk, scaled = setting["chunk"], setting["scaled_exp"]
        return partial(function, chunk_size=chunk, use_scaled_exp=scaled)


class Trl(CrossEntropyPeer):
    """TRL's log-probabilities from hidden states, in tiles of rows and vocabulary.

    Its trainers use them, without a function that a user could call: what is taken here is the
    autograd function, called as the trainers call it. On a GPU its tiles are read by Triton
    kernels, on a CPU by torch. It forms every tile again in the backward pass.

    Rows: answer rows alone, as its trainers have it on a GPU: it knows no target to ignore. The
    setting `columns` is the width of a tile; no wider one than the vocabulary is tried.
    """

    name = "TRL"
    distribution = "trl"
    ignores_targets = False
    caps_logits = True
    columns = {"cpu": (8192, 32768), "cuda": (8192, 32768, 131072)}
    """Widths of a tile, by device; its trainers have 32768."""

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        widths = sorted({min(width, case.vocabulary) for width in self.columns[device.type]})
        return [{"columns": width} for width in widths]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        function = trl_function("chunked_logprob", "ChunkedLogProbFunction")
        options = 1.0, setting["columns"], softcap, 1.0, ()

        def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            logprobs: Tensor = function(hidden, weight, None, target, *options)[0]
            return -logprobs.mean()

        return loss


def trl_function(module: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """One of TRL's autograd functions, with what a first backward pass would import, seconds long
    of it, imported ahead."""
    import_module("trl.trainer.utils")
    function: Callable[..., tuple[Tensor, ...]]
    function = getattr(import_module(f"trl.kernels.{module}"), name).apply
    return function
