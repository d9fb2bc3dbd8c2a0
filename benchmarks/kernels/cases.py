"""What `benchmarks.kernel_report` compiles: calls of the launchers with tensors on no device.

A case names an op, a variant and a dtype, and calls the op's launcher on meta tensors. The sizes
are those of an 8B model's head: N = 4096 rows, D = 4096, V = 128256, K = 64 selected tokens.

A list by hand: pytest's parametrisation and hypothesis vary all things together, and what is to be
looked at in a report are variants with a name.

To add a kernel: a function that launches it, in `LAUNCHERS`, and lines in `CASES`.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pact_kernels.common.reduction import Reduction
from pact_kernels.common.requests import KlRequest, TermRequest
from pact_kernels.dispatch import workspace_bytes
from pact_kernels.kernels._kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels._kernels.scale_gradient import launch_scale_gradient
from pact_kernels.kernels.head_loss import reduced_head_loss
from pact_kernels.kernels.selected_logits import selected_logits, selected_logits_backward
from pact_kernels.kernels.selection_kl import selection_kl
from pact_kernels.kernels.token_scores import token_scores
from pact_kernels.types import GateConfig, Head

NUM_ROWS = 4096
WIDTH = 4096
UNEVEN_WIDTH = 4104
"""A multiple of 8 alone: no tile's width divides it, and Triton, which looks for 16, sees pointers
to unaligned rows. The rows of 16-bit values still start at multiples of TMA's 16 bytes."""
VOCABULARY = 128256
SMALL_VOCABULARY = 32000
"""Fewer tiles than processors: token scores split their rows."""
CHUNK_ROWS = 1024
"""About what a chunk of the default workspace holds."""
SELECTED = 64
SOFTCAP = 30.0
"""Gemma's."""
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GPU_WORKSPACE_BYTES = workspace_bytes(torch.device("cuda"))


@dataclass(frozen=True)
class Case:
    """One call of a launcher."""

    op: str
    """One of LAUNCHERS."""
    variant: str
    """What sets it apart from the op's other cases of this dtype."""
    dtype: torch.dtype = BF16
    default: bool = False
    """Compiled without `--all`."""
    num_tokens: int = SELECTED
    """K."""
    width: int = WIDTH
    """D."""
    vocabulary: int = VOCABULARY
    """V."""
    bias: bool = False
    softcap: float | None = None
    trained: bool = False
    """Whether the head is."""
    target: bool = False
    """Whether a log-sum-exp's rows have one."""
    selected: bool = False
    """Whether a log-sum-exp comes with selected logits."""
    over: Literal["selection", "vocabulary"] | None = None
    """What a KL is over; None has none."""
    states: bool = False
    """Whether a KL's reference comes as states, not as logits of 16 bits."""
    gate: bool = True
    own_tokens: bool = False
    """Whether each row has its own K."""
    smoothed: bool = False
    mode: str = "p_diff"
    """How token scores compare two models."""

    def launch(self) -> None:
        """Call the launcher on meta tensors."""
        LAUNCHERS[self.op](self)

    @property
    def dtype_name(self) -> str:
        """Short: bf16, fp16, fp32."""
        return {BF16: "bf16", FP16: "fp16", FP32: "fp32"}[self.dtype]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype_name} {self.variant}"

    def hidden(self, num_rows: int = NUM_ROWS) -> Tensor:
        """(N, D) states that are nowhere."""
        return meta(num_rows, self.width, dtype=self.dtype)

    def head(self, tokens: int) -> Head:
        """A head that is nowhere."""
        bias = meta(tokens, dtype=self.dtype) if self.bias else None
        return Head(meta(tokens, self.width, dtype=self.dtype), bias, self.softcap)

    def kl(self, num_rows: int) -> KlRequest:
        """Its KL."""
        assert self.over is not None
        size = self.width if self.states else self.num_tokens
        reference = meta(num_rows, size, dtype=self.dtype)
        lse = meta(num_rows, dtype=FP32) if self.over == "vocabulary" else None
        return KlRequest(
            token_weights=meta(self.num_tokens, dtype=FP32),
            step=meta(num_rows, dtype=torch.int64),
            reference_full=reference,
            reference_post=reference if self.gate else None,
            reference_head=replace(self, bias=False).head(self.num_tokens) if self.states else None,
            full_lse=lse,
            post_lse=lse if self.gate else None,
            row_weight=None,
            gate=GateConfig() if self.gate else None,
            over=self.over,
            temperature=2.0 if self.over == "selection" else 1.0,
            kl_weight=1.0,
        )


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor that is nowhere."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def _linear_logsumexp(case: Case) -> None:
    launch_linear_logsumexp(
        case.hidden(),
        case.head(case.vocabulary),
        meta(NUM_ROWS, dtype=torch.int64) if case.target else None,
        meta(case.num_tokens, dtype=torch.int64) if case.selected else None,
        limit_bytes=GPU_WORKSPACE_BYTES,
    )


def _pact_kl(case: Case) -> None:
    selection_kl(
        case.hidden(),
        case.head(case.num_tokens),
        kl=case.kl(NUM_ROWS),
        row_grad=None,
        needs_grad=(True, case.trained, False),
        limit_bytes=GPU_WORKSPACE_BYTES,
    )


def _head_loss(case: Case) -> None:
    hidden, head = case.hidden(CHUNK_ROWS), case.head(case.vocabulary)
    tokens = (CHUNK_ROWS, case.num_tokens) if case.own_tokens else (case.num_tokens,)
    scale = meta(1, dtype=FP32)
    launch_scale_gradient(hidden, scale)
    if case.trained:
        formed = meta(*head.weight.shape, dtype=FP32)
        launch_scale_gradient(formed, scale, head.weight)
    reduced_head_loss(
        hidden,
        head,
        meta(CHUNK_ROWS, dtype=torch.int64),
        meta(*tokens, dtype=torch.int64) if case.over else None,
        term=TermRequest(kind="cross_entropy", label_smoothing=0.1 if case.smoothed else 0.0),
        kl=case.kl(CHUNK_ROWS) if case.over else None,
        reduction=Reduction("mean"),
        needs_grad=(True, case.trained, case.trained and case.bias),
        limit_bytes=GPU_WORKSPACE_BYTES,
        num_rows=CHUNK_ROWS,
    )


def _selected_logits(case: Case) -> None:
    states, head, limit = case.hidden(), case.head(case.num_tokens), GPU_WORKSPACE_BYTES
    logits = selected_logits(states, head, limit_bytes=limit)
    needs_grad = (True, False, False)
    selected_logits_backward(logits, states, head, needs_grad=needs_grad, limit_bytes=limit)


def _token_scores(case: Case) -> None:
    model = case.hidden(), case.head(case.vocabulary)
    share = meta(NUM_ROWS, dtype=torch.float64)
    token_scores(*model, *model, share, mode=case.mode, limit_bytes=GPU_WORKSPACE_BYTES)


LAUNCHERS: dict[str, Callable[[Case], None]] = {
    "pact_kl": _pact_kl,
    "head_loss": _head_loss,
    "linear_logsumexp": _linear_logsumexp,
    "selected_logits": _selected_logits,
    "token_scores": _token_scores,
}
_kl = partial(Case, "pact_kl", over="selection", states=True)
_loss, _lse, _logits, _scores = (partial(Case, op) for op in list(LAUNCHERS)[1:])
_CAPPED_HEAD: dict[str, Any] = {"trained": True, "softcap": SOFTCAP}

CASES: tuple[Case, ...] = (
    *(
        case
        for k in (64, 128, 256)
        for case in (
            _kl(f"K{k}", num_tokens=k, default=True),
            _kl(f"K{k} cached", num_tokens=k, states=False, default=k < 256),
            _kl(f"K{k} no gate", num_tokens=k, gate=False),
            _kl(f"K{k} trained softcap", num_tokens=k, **_CAPPED_HEAD),
        )
    ),
    _kl("K16", num_tokens=16),
    _kl("K50 uneven", num_tokens=50, width=UNEVEN_WIDTH),
    _kl("K1000", num_tokens=1000, default=True),
    _kl("K4096", num_tokens=4096),
    *(
        case
        for k in (16, 64, 128)
        for case in (
            _kl(f"K{k}", FP32, num_tokens=k, default=k == 64),
            _kl(f"K{k} trained softcap", FP32, num_tokens=k, **_CAPPED_HEAD),
        )
    ),
    _kl("K1000", FP32, num_tokens=1000),
    _kl("K64", FP16, num_tokens=64),
    _loss("plain", default=True),
    _loss("selection", over="selection", default=True),
    _loss("vocabulary", over="vocabulary", default=True),
    _loss("vocabulary states", over="vocabulary", states=True),
    _loss("vocabulary K1000", over="vocabulary", num_tokens=1000),
    _loss("own tokens", over="vocabulary", own_tokens=True, default=True),
    _loss("all", over="vocabulary", bias=True, softcap=SOFTCAP, smoothed=True),
    _loss("softcap", softcap=SOFTCAP),
    _loss("smoothed trained", bias=True, smoothed=True, trained=True),
    _loss("plain", FP32),
    _loss("vocabulary", FP32, over="vocabulary"),
    _lse("lse", default=True),
    _lse("target", target=True, default=True),
    _lse("selected", selected=True, default=True),
    _lse("target selected", target=True, selected=True),
    _lse("softcap", softcap=SOFTCAP),
    _lse("softcap selected", softcap=SOFTCAP, selected=True),
    _lse("bias", bias=True),
    _lse("all", bias=True, target=True, selected=True, softcap=SOFTCAP),
    _lse("uneven", width=UNEVEN_WIDTH),
    _lse("uneven target selected", width=UNEVEN_WIDTH, target=True, selected=True),
    _lse("lse", FP16),
    _lse("lse", FP32, default=True),
    _lse("target selected", FP32, target=True, selected=True),
    _lse("uneven", FP32, width=UNEVEN_WIDTH),
    _logits(f"K{SELECTED}", default=True),
    _logits("K1000", num_tokens=1000),
    _logits(f"K{SELECTED} softcap", softcap=SOFTCAP),
    _logits(f"K{SELECTED} uneven", width=UNEVEN_WIDTH),
    _logits(f"K{SELECTED}", FP16),
    _logits(f"K{SELECTED}", FP32, default=True),
    _scores("p_diff", default=True),
    _scores("pref_logratio", mode="pref_logratio"),
    _scores("small vocabulary", vocabulary=SMALL_VOCABULARY),
    _scores("all", mode="pref_logratio", bias=True, softcap=SOFTCAP),
    _scores("uneven", width=UNEVEN_WIDTH),
    _scores("p_diff", FP32),
)
