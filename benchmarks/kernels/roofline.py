"""Roofline times of the head on cards that need not be here: chunks of logits against exponentials.

    python -m benchmarks.kernels.roofline

Every launch of a cross-entropy's forward and backward, and every product of the vendor's, is taken
at the larger of its flops over the card's peak and its bytes over the card's bandwidth. These are
bounds from datasheets, not measurements: no product runs at a datasheet's peak. What they compare
is the bytes that pass over the chunk. `bytes/logit` are those of launches and products that touch
the chunk, over N V.

Hand-written, since torch's `FlopCounterMode` counts no bytes, and neither it nor Triton's `proton`
sees launches on no device.

Legend: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases.plans import HEADS
from benchmarks.kernels.cases import meta
from benchmarks.kernels.gpus import GPUS, Gpu, roofline_us
from pact_kernels.common.reduction import Reduction
from pact_kernels.common.requests import TermRequest
from pact_kernels.dispatch import workspace_bytes
from pact_kernels.kernels._launch.configs import TAKES_EXPONENTIALS
from pact_kernels.kernels._launch.runtime import TARGETS, Cost, Launch, recording, tensors
from pact_kernels.kernels.head_loss import reduced_head_loss
from pact_kernels.types import Head

NUM_ROWS = 16384
CARDS: dict[str, tuple[str, float | None]] = {
    "A100 80GB SXM": ("sm_80", None),
    "H100 SXM": ("sm_90", None),
    "H200": ("sm_90", 4.8),
    "B200": ("sm_100", None),
    "MI300X": ("gfx942", None),
}
"""Target of each, and its bandwidth in TB/s where that is not the target's own card's."""


class Work(NamedTuple):
    """One launch, or one product of the vendor's."""

    cost: Cost
    is_product: bool
    chunk_bytes: int
    """Those of its bytes that are of the chunk (M, V)."""


class _Products(TorchDispatchMode):
    """Matrix products of torch's, as work."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.seen = vocabulary, list[Work]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            adds = name != "aten::mm"  # to a sum in fp32, which is read and written
            left, right = operands = args[1:3] if adds else args[:2]
            (rows, inner), columns = left.shape, right.shape[1]
            touched = rows * columns * (8 if adds else left.itemsize)
            chunk = sum(each.nbytes for each in operands if self._is_chunk(each))
            if columns == self.vocabulary:
                chunk += touched
            num_bytes = left.nbytes + right.nbytes + touched
            cost = Cost(flops=2 * rows * inner * columns, bytes=num_bytes)
            self.seen.append(Work(cost, True, chunk))
        return func(*args, **(kwargs or {}))

    def _is_chunk(self, tensor: Tensor) -> bool:
        rows, columns = tensor.shape
        along, across = tensor.stride()
        upright = columns == self.vocabulary and across == 1
        return upright or (rows == self.vocabulary and along == 1)


def work_of(
    num_rows: int, head: tuple[int, int], target: str, *, exponentials: bool, trained: bool
) -> list[Work]:
    """All of a mean cross-entropy's work in bf16, from recorded launches."""
    width, vocabulary = head
    gradient_bytes = 4 * width * vocabulary if trained else 0
    limit = workspace_bytes(torch.device("cuda"), gradient_bytes)
    products = _Products(vocabulary)
    chosen = patch.dict(TAKES_EXPONENTIALS, {target: exponentials})
    with chosen, recording(TARGETS[target]) as launches, products:
        reduced_head_loss(
            meta(num_rows, width, dtype=torch.bfloat16),
            Head(meta(vocabulary, width, dtype=torch.bfloat16)),
            meta(num_rows, dtype=torch.int64),
            None,
            term=TermRequest(kind="cross_entropy"),
            kl=None,
            reduction=Reduction("mean"),
            needs_grad=(True, trained, False),
            limit_bytes=limit,
            num_rows=num_rows,
        )
    return [_launched(launch, vocabulary) for launch in launches] + products.seen


def _launched(launch: Launch, vocabulary: int) -> Work:
    is_product = launch.kernel.fn.__name__ == "_exponential_chunk_kernel"
    named = [launch.arguments.get(name) for name in ("chunk", "chunk_tiles")]
    chunks = [each.numel() for each in tensors(named) if each.shape[-1:] == (vocabulary,)]
    return Work(launch.cost, is_product, launch.cost.logit_bytes * (chunks[0] if chunks else 0))


def time_ms(works: Sequence[Work], gpu: Gpu, bandwidth_tb_per_s: float | None) -> float:
    """Their roofline times one after the other."""
    if bandwidth_tb_per_s is not None:
        gpu = replace(gpu, bandwidth_tb_per_s=bandwidth_tb_per_s)
    return 1e-3 * sum(
        roofline_us(gpu, work.cost, torch.bfloat16, product=work.is_product) for work in works
    )


def table(num_rows: int, *, trained: bool) -> str:
    """A line a card and a head: both ways, and the bytes per logit of each."""
    lines = [
        f"{'card':14s} {'head':22s} {'logits ms':>10s} {'exp ms':>8s} {'ratio':>6s} bytes/logit"
    ]
    for card, (target, bandwidth) in CARDS.items():
        for head in HEADS.values():
            ways = [
                work_of(num_rows, head, target, exponentials=way, trained=trained)
                for way in (False, True)
            ]
            old, new = (time_ms(works, GPUS[target], bandwidth) for works in ways)
            per_logit = [
                sum(work.chunk_bytes for work in works) / (num_rows * head.vocabulary)
                for works in ways
            ]
            chosen = "exp" if TAKES_EXPONENTIALS[target] else "logits"
            lines.append(
                f"{card:14s} {f'{head.hidden} x {head.vocabulary}':22s} {old:10.2f} {new:8.2f} "
                f"{new / old:6.3f} {per_logit[0]:.0f} -> {per_logit[1]:.0f}  default: {chosen}"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table of a frozen head, and of a trained one."""
    for trained in (False, True):
        print(f"{'trained' if trained else 'frozen'} head, {NUM_ROWS} rows, bf16")
        print(table(NUM_ROWS, trained=trained), end="\n\n")


if __name__ == "__main__":
    main()
