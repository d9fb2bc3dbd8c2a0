"""What `benchmarks.kernel_report` compiles: calls of the launchers with tensors on no device.

A case names an op, a dtype and a variant, and calls the op's launcher on meta tensors. The sizes
are those of an 8B model's head: N = 4096 rows, D = 4096, V = 128256, K = 64 selected tokens.

To add a kernel: a function that yields its cases, and a line in `CASES`.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

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
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype_name} {self.variant}"


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor that is nowhere."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def meta_head(
    tokens: int, width: int, dtype: torch.dtype, *, bias: bool = False, softcap: float | None = None
) -> Head:
    """A head that is nowhere."""
    return Head(
        meta(tokens, width, dtype=dtype), meta(tokens, dtype=dtype) if bias else None, softcap
    )


def _linear_logsumexp_cases() -> Iterator[Case]:
    def case(
        variant: str,
        dtype: torch.dtype = torch.bfloat16,
        default: bool = False,
        *,
        width: int = WIDTH,
        bias: bool = False,
        target: bool = False,
        selected: bool = False,
        softcap: float | None = None,
    ) -> Case:
        def launch() -> object:
            return launch_linear_logsumexp(
                meta(NUM_ROWS, width, dtype=dtype),
                meta_head(VOCABULARY, width, dtype, bias=bias, softcap=softcap),
                meta(NUM_ROWS, dtype=torch.int64) if target else None,
                meta(SELECTED, dtype=torch.int64) if selected else None,
                limit_bytes=GPU_WORKSPACE_BYTES,
            )

        return Case(
            op="linear_logsumexp", dtype=dtype, variant=variant, default=default, launch=launch
        )

    yield case("lse", default=True)
    yield case("target", target=True, default=True)
    yield case("selected", selected=True, default=True)
    yield case("target selected", target=True, selected=True)
    yield case("softcap", softcap=SOFTCAP)
    yield case("softcap selected", softcap=SOFTCAP, selected=True)
    yield case("bias", bias=True)
    yield case("all", bias=True, target=True, selected=True, softcap=SOFTCAP)
    yield case("uneven", width=UNEVEN_WIDTH)
    yield case("uneven target selected", width=UNEVEN_WIDTH, target=True, selected=True)
    yield case("lse", torch.float16)
    yield case("lse", torch.float32, default=True)
    yield case("target selected", torch.float32, target=True, selected=True)
    yield case("uneven", torch.float32, width=UNEVEN_WIDTH)


def _kl_request(
    num_rows: int,
    num_tokens: int,
    dtype: torch.dtype,
    *,
    over: Literal["selection", "vocabulary"] = "selection",
    states: bool = True,
    gate: bool = True,
    width: int = WIDTH,
    softcap: float | None = None,
) -> KlRequest:
    """A KL whose reference comes as states, or as logits of 16 bits."""
    source = [num_rows, width if states else num_tokens]
    lse = meta(num_rows, dtype=torch.float32) if over == "vocabulary" else None
    return KlRequest(
        token_weights=meta(num_tokens, dtype=torch.float32),
        step=meta(num_rows, dtype=torch.int64),
        reference_full=meta(*source, dtype=dtype),
        reference_post=meta(*source, dtype=dtype) if gate else None,
        reference_head=meta_head(num_tokens, width, dtype, softcap=softcap) if states else None,
        full_lse=lse,
        post_lse=lse if gate else None,
        row_weight=None,
        gate=GateConfig() if gate else None,
        over=over,
        temperature=2.0 if over == "selection" else 1.0,
        kl_weight=1.0,
    )


def _pact_kl_cases() -> Iterator[Case]:
    def case(
        num_tokens: int,
        variant: str = "",
        dtype: torch.dtype = torch.bfloat16,
        default: bool = False,
        *,
        width: int = WIDTH,
        states: bool = True,
        gate: bool = True,
        trained: bool = False,
        softcap: float | None = None,
    ) -> Case:
        def launch() -> object:
            return selection_kl(
                meta(NUM_ROWS, width, dtype=dtype),
                meta_head(num_tokens, width, dtype, softcap=softcap),
                kl=_kl_request(
                    NUM_ROWS,
                    num_tokens,
                    dtype,
                    states=states,
                    gate=gate,
                    width=width,
                    softcap=softcap,
                ),
                row_grad=None,
                needs_grad=(True, trained, False),
                limit_bytes=GPU_WORKSPACE_BYTES,
            )

        name = f"K{num_tokens} {variant}".rstrip()
        return Case(op="pact_kl", dtype=dtype, variant=name, default=default, launch=launch)

    for num_tokens in (64, 128, 256):
        yield case(num_tokens, default=True)
        yield case(num_tokens, "cached", states=False, default=num_tokens < 256)
        yield case(num_tokens, "no gate", gate=False)
        yield case(num_tokens, "trained softcap", trained=True, softcap=SOFTCAP)
    yield case(16)
    yield case(50, "uneven", width=UNEVEN_WIDTH)
    yield case(1000, default=True)
    yield case(4096)
    for num_tokens in (16, 64, 128):
        yield case(num_tokens, "", torch.float32, default=num_tokens == 64)
        yield case(num_tokens, "trained softcap", torch.float32, trained=True, softcap=SOFTCAP)
    yield case(1000, "", torch.float32)
    yield case(64, "", torch.float16)


def _head_loss_cases() -> Iterator[Case]:
    def case(
        variant: str,
        dtype: torch.dtype = torch.bfloat16,
        default: bool = False,
        *,
        over: Literal["selection", "vocabulary"] | None = None,
        num_tokens: int = SELECTED,
        states: bool = False,
        bias: bool = False,
        softcap: float | None = None,
        smoothed: bool = False,
        trained: bool = False,
        own_tokens: bool = False,
    ) -> Case:
        tokens = (CHUNK_ROWS, num_tokens) if own_tokens else (num_tokens,)

        def launch() -> object:
            kl = None
            if over is not None:
                kl = _kl_request(
                    CHUNK_ROWS, num_tokens, dtype, over=over, states=states, softcap=softcap
                )
            scale = meta(1, dtype=torch.float32)
            launch_scale_gradient(meta(CHUNK_ROWS, WIDTH, dtype=dtype), scale)
            if trained:
                formed = meta(VOCABULARY, WIDTH, dtype=torch.float32)
                launch_scale_gradient(formed, scale, meta(VOCABULARY, WIDTH, dtype=dtype))
            return reduced_head_loss(
                meta(CHUNK_ROWS, WIDTH, dtype=dtype),
                meta_head(VOCABULARY, WIDTH, dtype, bias=bias, softcap=softcap),
                meta(CHUNK_ROWS, dtype=torch.int64),
                None if kl is None else meta(*tokens, dtype=torch.int64),
                term=TermRequest(kind="cross_entropy", label_smoothing=0.1 if smoothed else 0.0),
                kl=kl,
                reduction=Reduction("mean"),
                needs_grad=(True, trained, trained and bias),
                limit_bytes=GPU_WORKSPACE_BYTES,
                num_rows=CHUNK_ROWS,
            )

        return Case(op="head_loss", dtype=dtype, variant=variant, default=default, launch=launch)

    yield case("plain", default=True)
    yield case("selection", over="selection", default=True)
    yield case("vocabulary", over="vocabulary", default=True)
    yield case("vocabulary states", over="vocabulary", states=True)
    yield case("vocabulary K1000", over="vocabulary", num_tokens=1000)
    yield case("own tokens", over="vocabulary", own_tokens=True, default=True)
    yield case("all", over="vocabulary", bias=True, softcap=SOFTCAP, smoothed=True)
    yield case("softcap", softcap=SOFTCAP)
    yield case("smoothed trained", bias=True, smoothed=True, trained=True)
    yield case("plain", torch.float32)
    yield case("vocabulary", torch.float32, over="vocabulary")


def _selected_logits_cases() -> Iterator[Case]:
    def case(
        num_tokens: int,
        variant: str = "",
        dtype: torch.dtype = torch.bfloat16,
        default: bool = False,
        *,
        width: int = WIDTH,
        softcap: float | None = None,
    ) -> Case:
        def launch() -> object:
            states = meta(NUM_ROWS, width, dtype=dtype)
            head = meta_head(num_tokens, width, dtype, softcap=softcap)
            logits = selected_logits(states, head, limit_bytes=GPU_WORKSPACE_BYTES)
            return selected_logits_backward(
                logits,
                states,
                head,
                needs_grad=(True, False, False),
                limit_bytes=GPU_WORKSPACE_BYTES,
            )

        name = f"K{num_tokens} {variant}".rstrip()
        return Case(op="selected_logits", dtype=dtype, variant=name, default=default, launch=launch)

    yield case(SELECTED, default=True)
    yield case(1000)
    yield case(SELECTED, "softcap", softcap=SOFTCAP)
    yield case(SELECTED, "uneven", width=UNEVEN_WIDTH)
    yield case(SELECTED, "", torch.float16)
    yield case(SELECTED, "", torch.float32, default=True)


def _token_scores_cases() -> Iterator[Case]:
    def case(
        variant: str,
        dtype: torch.dtype = torch.bfloat16,
        default: bool = False,
        *,
        mode: str = "p_diff",
        width: int = WIDTH,
        vocabulary: int = VOCABULARY,
        bias: bool = False,
        softcap: float | None = None,
    ) -> Case:
        def launch() -> object:
            model = (
                meta(NUM_ROWS, width, dtype=dtype),
                meta_head(vocabulary, width, dtype, bias=bias, softcap=softcap),
            )
            return token_scores(
                *model,
                *model,
                meta(NUM_ROWS, dtype=torch.float64),
                mode=mode,
                limit_bytes=GPU_WORKSPACE_BYTES,
            )

        return Case(op="token_scores", dtype=dtype, variant=variant, default=default, launch=launch)

    yield case("p_diff", default=True)
    yield case("pref_logratio", mode="pref_logratio")
    yield case("small vocabulary", vocabulary=SMALL_VOCABULARY)
    yield case("all", mode="pref_logratio", bias=True, softcap=SOFTCAP)
    yield case("uneven", width=UNEVEN_WIDTH)
    yield case("p_diff", torch.float32)


CASES: tuple[Case, ...] = (
    *_pact_kl_cases(),
    *_head_loss_cases(),
    *_linear_logsumexp_cases(),
    *_selected_logits_cases(),
    *_token_scores_cases(),
)
