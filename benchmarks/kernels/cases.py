"""What `benchmarks.kernel_report` compiles: calls of the launchers with tensors on no device.

A case names an op, a dtype and a variant, and calls the op's launcher on meta tensors. The sizes
are those of an 8B model's head: N = 4096 rows, D = 4096, V = 128256, K = 64 selected tokens.

A list by hand: pytest's parametrisation and hypothesis vary all things together, and what is to be
looked at in a report are variants with a name.

To add a kernel: a function that launches it, and lines in `CASES`.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a launcher."""

    op: str
    dtype: torch.dtype
    variant: str
    """What sets it apart from the op's other cases of this dtype."""
    default: bool
    """Compiled without `--all`."""
    launch: Callable[[], object]
    """Calls the launcher on meta tensors."""

    @property
    def dtype_name(self) -> str:
        """Short: bf16, fp16, fp32."""
        return {BF16: "bf16", FP16: "fp16", FP32: "fp32"}[self.dtype]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype_name} {self.variant}"


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor that is nowhere."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def meta_head(
    tokens: int, width: int, dtype: torch.dtype, *, bias: bool = False, softcap: float | None = None
) -> Head:
    """A head that is nowhere."""
    weight = meta(tokens, width, dtype=dtype)
    return Head(weight, meta(tokens, dtype=dtype) if bias else None, softcap)


def _linear_logsumexp(
    dtype: torch.dtype,
    *,
    width: int = WIDTH,
    target: bool = False,
    selected: bool = False,
    **head: Any,
) -> None:
    launch_linear_logsumexp(
        meta(NUM_ROWS, width, dtype=dtype),
        meta_head(VOCABULARY, width, dtype, **head),
        meta(NUM_ROWS, dtype=torch.int64) if target else None,
        meta(SELECTED, dtype=torch.int64) if selected else None,
        limit_bytes=GPU_WORKSPACE_BYTES,
    )


def _kl_request(
    num_rows: int,
    reference_head: Head,
    *,
    over: Literal["selection", "vocabulary"] = "selection",
    states: bool = True,
    gate: bool = True,
) -> KlRequest:
    """A KL whose reference comes as states, or as logits of 16 bits."""
    num_tokens, width = reference_head.weight.shape
    source = meta(num_rows, width if states else num_tokens, dtype=reference_head.weight.dtype)
    lse = meta(num_rows, dtype=FP32) if over == "vocabulary" else None
    return KlRequest(
        token_weights=meta(num_tokens, dtype=FP32),
        step=meta(num_rows, dtype=torch.int64),
        reference_full=source,
        reference_post=source if gate else None,
        reference_head=reference_head if states else None,
        full_lse=lse,
        post_lse=lse if gate else None,
        row_weight=None,
        gate=GateConfig() if gate else None,
        over=over,
        temperature=2.0 if over == "selection" else 1.0,
        kl_weight=1.0,
    )


def _pact_kl(
    dtype: torch.dtype,
    *,
    num_tokens: int = SELECTED,
    width: int = WIDTH,
    trained: bool = False,
    softcap: float | None = None,
    **reference: Any,
) -> None:
    head = meta_head(num_tokens, width, dtype, softcap=softcap)
    selection_kl(
        meta(NUM_ROWS, width, dtype=dtype),
        head,
        kl=_kl_request(NUM_ROWS, head, **reference),
        row_grad=None,
        needs_grad=(True, trained, False),
        limit_bytes=GPU_WORKSPACE_BYTES,
    )


def _head_loss(
    dtype: torch.dtype,
    *,
    over: Literal["selection", "vocabulary"] | None = None,
    num_tokens: int = SELECTED,
    states: bool = False,
    smoothed: bool = False,
    trained: bool = False,
    own_tokens: bool = False,
    **head: Any,
) -> None:
    kl = token_ids = None
    if over is not None:
        selected = meta_head(num_tokens, WIDTH, dtype, softcap=head.get("softcap"))
        kl = _kl_request(CHUNK_ROWS, selected, over=over, states=states)
        tokens = (CHUNK_ROWS, num_tokens) if own_tokens else (num_tokens,)
        token_ids = meta(*tokens, dtype=torch.int64)
    scale = meta(1, dtype=FP32)
    launch_scale_gradient(meta(CHUNK_ROWS, WIDTH, dtype=dtype), scale)
    if trained:
        formed = meta(VOCABULARY, WIDTH, dtype=FP32)
        launch_scale_gradient(formed, scale, meta(VOCABULARY, WIDTH, dtype=dtype))
    reduced_head_loss(
        meta(CHUNK_ROWS, WIDTH, dtype=dtype),
        meta_head(VOCABULARY, WIDTH, dtype, **head),
        meta(CHUNK_ROWS, dtype=torch.int64),
        token_ids,
        term=TermRequest(kind="cross_entropy", label_smoothing=0.1 if smoothed else 0.0),
        kl=kl,
        reduction=Reduction("mean"),
        needs_grad=(True, trained, trained and "bias" in head),
        limit_bytes=GPU_WORKSPACE_BYTES,
        num_rows=CHUNK_ROWS,
    )


def _selected_logits(
    dtype: torch.dtype, *, num_tokens: int = SELECTED, width: int = WIDTH, **options: Any
) -> None:
    states, limit = meta(NUM_ROWS, width, dtype=dtype), GPU_WORKSPACE_BYTES
    head = meta_head(num_tokens, width, dtype, **options)
    logits = selected_logits(states, head, limit_bytes=limit)
    needs_grad = (True, False, False)
    selected_logits_backward(logits, states, head, needs_grad=needs_grad, limit_bytes=limit)


def _token_scores(
    dtype: torch.dtype,
    *,
    mode: str = "p_diff",
    width: int = WIDTH,
    vocabulary: int = VOCABULARY,
    **head: Any,
) -> None:
    model = meta(NUM_ROWS, width, dtype=dtype), meta_head(vocabulary, width, dtype, **head)
    share = meta(NUM_ROWS, dtype=torch.float64)
    token_scores(*model, *model, share, mode=mode, limit_bytes=GPU_WORKSPACE_BYTES)


def _case(
    launch: Any, variant: str, dtype: torch.dtype = BF16, *, default: bool = False, **options: Any
) -> Case:
    """A case of the op that a function launches, and what that is told."""
    op, call = launch.__name__.removeprefix("_"), partial(launch, dtype, **options)
    return Case(op=op, dtype=dtype, variant=variant, default=default, launch=call)


_kl, _loss, _lse = (partial(_case, each) for each in (_pact_kl, _head_loss, _linear_logsumexp))
_logits, _scores = partial(_case, _selected_logits), partial(_case, _token_scores)
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
