"""What a call costs the host: Triton launches and torch's operations, on recorded launches.

The operators run on meta tensors, as a GPU would run them: nothing is looked at, nothing waits.
Views and fresh memory launch nothing and do not count. What autograd adds of its own is the ones
that a backward starts from.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pact_kernels.common.reduction import Reduction
from pact_kernels.kernels._launch.runtime import TARGETS, recording
from pact_kernels.ops._operators import head_loss, selection_kl
from pact_kernels.ops._operators.kl_arguments import KlArguments, ReferenceArguments, gate_values
from pact_kernels.ops._operators.row_loss import Settings
from pact_kernels.ops._operators.scale_gradient import scaled_gradients
from pact_kernels.ops._operators.schema import flat
from pact_kernels.types import GateConfig, Head
from tests.kernels.test_head_loss_chunks import meta

FREE = {
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "new_empty",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
    "_unsafe_view",
}
N, D, V, K = 1024, 256, 5003, 50
CHUNK_BYTES = 128 * (2 * 5008 + 4 * 20) + 16 * 1024  # 128 rows of E and their sums, hardly more


class Operations(TorchDispatchMode):
    """Those of torch that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        result = func(*args, **(kwargs or {}))
        empty = isinstance(result, Tensor) and result.numel() == 0
        if name not in FREE and not empty:
            self.seen.append(name)
        return result


def cost(operator: Any, arguments: tuple[Any, ...], limit_bytes: int) -> list[str]:
    """What a mean's forward and backward launch with a frozen head, by name."""
    settings = Settings(Reduction("mean"), [True, False, False], limit_bytes, "triton")
    with recording(TARGETS["sm_90"]) as launches, Operations() as operations:
        loss, _, _, *formed = operator._forward(*flat(arguments), *flat(settings))
        scaled_gradients(
            formed,
            torch.empty_like(loss),
            [torch.bfloat16] * 3,
            settings.needs_grad,
            implementation="triton",
            limit_bytes=limit_bytes,
            keep_graph=False,
        )
    return [launch.kernel.fn.__name__ for launch in launches] + operations.seen


def kl_arguments(over: str) -> KlArguments:
    logits, lse = meta(N, K, dtype=torch.float32), meta(N, dtype=torch.float32)
    full_lse = lse if over == "vocabulary" else None
    return KlArguments(
        token_weights=meta(K, dtype=torch.float32),
        step=meta(N, dtype=torch.int64),
        reference=ReferenceArguments(logits, logits, full_lse=full_lse, post_lse=full_lse),
        gate=gate_values(GateConfig()),
        over=over,
        temperature=2.0 if over == "selection" else 1.0,
    )


def pact_loss(over: str, limit_bytes: int) -> list[str]:
    arguments = head_loss.HeadLossArguments(
        meta(N, D),
        Head(meta(V, D)),
        meta(N, dtype=torch.int64),
        meta(K, dtype=torch.int64),
        kl_arguments(over),
        kind="cross_entropy",
        num_rows=N,
    )
    return cost(head_loss._operator, arguments, limit_bytes)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_pact_loss(over: str) -> None:
    one = pact_loss(over, 2**30)
    assert len(one) <= 14, one
    several = pact_loss(over, 2 * CHUNK_BYTES)
    chunks = several.count("_exponential_chunk_kernel")
    assert chunks > 2
    assert len(several) <= len(one) + 5 * (chunks - 1), several


def test_cross_entropy() -> None:
    arguments = head_loss.HeadLossArguments(
        meta(N, D), Head(meta(V, D)), meta(N, dtype=torch.int64), kind="cross_entropy", num_rows=N
    )
    assert len(cost(head_loss._operator, arguments, 2**30)) <= 12


def test_pact_kl() -> None:
    arguments = selection_kl.SelectionKlArguments(
        meta(N, D), Head(meta(K, D)), kl_arguments("selection")
    )
    assert len(cost(selection_kl._operator, arguments, 2**30)) <= 8 - 1  # and the K rows gathered


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_no_operation_of_torch_passes_over_the_states(over: str) -> None:
    """But the product with the exponentials."""
    operations = [name for name in pact_loss(over, 2**30) if not name.endswith("_kernel")]
    assert set(operations) <= {"mm", "index_select", "zero_"}
