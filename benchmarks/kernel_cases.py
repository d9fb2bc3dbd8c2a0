"""What `benchmarks.kernel_report` compiles: calls of the launchers with tensors on no device.

A case names an op, a dtype and a variant, and calls the op's launcher on meta tensors. The sizes
are those of an 8B model's head: N = 4096 rows, D = 4096, V = 128256, K = 64 selected tokens.

To add a kernel: a function that yields its cases, and a line in `CASES`.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pact_kernels.implementation import workspace_bytes
from pact_kernels.kernels.linear_logsumexp import launch_linear_logsumexp

NUM_ROWS = 4096
WIDTH = 4096
UNEVEN_WIDTH = 4104
"""A multiple of 8 alone: no tile's width divides it, and Triton, which looks for 16, sees pointers
to unaligned rows. The rows of 16-bit values still start at multiples of TMA's 16 bytes."""
VOCABULARY = 128256
SELECTED = 64
SOFTCAP = 30.0
"""Gemma's."""


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
                meta(VOCABULARY, width, dtype=dtype),
                meta(VOCABULARY, dtype=dtype) if bias else None,
                meta(NUM_ROWS, dtype=torch.int64) if target else None,
                meta(SELECTED, dtype=torch.int64) if selected else None,
                softcap=softcap,
                logit_scale=1.0,
                limit_bytes=workspace_bytes(torch.device("cuda")),
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


CASES: tuple[Case, ...] = (*_linear_logsumexp_cases(),)
