"""Beyond inputs and outputs an op takes its workspace and no more, however many rows there are.

What comes on top: some 50 bytes per row of the input, and the K selected rows of the heads in the
given dtype, which are gathered before the operator begins. A backward also holds the gradients that
its forward formed until they are scaled: they are outputs of the operator.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from tests.ops.memory import Memory, memory_of

ROWS, HIDDEN, VOCABULARY = 1200, 64, 4099  # all logits would be 19 MiB in fp32
MIB = 2**20
CAP_MIB = 1.0
PER_ROW_BYTES = 64
DTYPES = [torch.float32, torch.bfloat16]


def head(dtype: torch.dtype, trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(ROWS, HIDDEN, generator=g).to(dtype).requires_grad_(),
        torch.randn(VOCABULARY, HIDDEN, generator=g).mul(0.3).to(dtype).requires_grad_(trained),
        torch.randn(VOCABULARY, generator=g).to(dtype).requires_grad_(trained),
    )


def targets() -> Tensor:
    target = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))
    target[::3] = -100
    return target


def references(source: str, rows: int, selected: int, weight: Tensor) -> Any:
    g = torch.Generator().manual_seed(2)
    if source == "states":
        states = torch.randn(2, rows, HIDDEN, generator=g).to(weight.dtype)
        return pk.ReferenceStates(states[0], states[1], weight.detach())
    logits = torch.randn(2, rows, selected, generator=g)
    lse = torch.full((2, rows), 12.0)
    return pk.ReferenceLogits(logits[0], logits[1], lse[0], lse[1])


def kl_arguments(source: str, rows: int, selected: int, weight: Tensor) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(3)
    ids = torch.randperm(VOCABULARY, generator=g)[:selected].sort().values
    step = torch.arange(rows) % 30
    weights = torch.rand(selected, generator=g)
    return ids, weights, step, references(source, rows, selected, weight)


def check(memory: Memory, *, formed_bytes: int = 0, selected: int = 0, outputs: int = 0) -> None:
    """Within the workspace; no single tensor of N x V, and none larger than an output."""
    gathered = 2 * selected * HIDDEN * 4
    slack = PER_ROW_BYTES * ROWS + gathered + formed_bytes
    assert memory.extra_bytes <= CAP_MIB * MIB + slack
    assert memory.largest_bytes <= max(CAP_MIB * MIB, outputs)


def forward_and_backward(op: Any, leaves: tuple[Tensor, ...]) -> tuple[Tensor, Memory, Memory]:
    """The op's value, and the memory of its forward and of its backward."""
    kept: list[Tensor] = []
    with pk.workspace(CAP_MIB):
        forward = memory_of(lambda: kept.append(op(*leaves)))
        (value,) = kept
        incoming = torch.ones_like(value)
        backward = memory_of(lambda: value.backward(incoming, retain_graph=True))
    return value, forward, backward


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["", "softcap"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_linear_cross_entropy(
    dtype: torch.dtype, reduction: str, trained: bool, softcap: float | None
) -> None:
    target = targets()

    def op(hidden, weight, bias):
        return pk.linear_cross_entropy(
            hidden, weight, target, bias=bias, reduction=reduction, softcap=softcap
        )

    leaves = head(dtype, trained)
    _, forward, backward = forward_and_backward(op, leaves)
    outputs = 4 * leaves[1].numel()
    check(forward, outputs=outputs)
    check(backward, outputs=outputs, formed_bytes=outputs if trained else 0)


@pytest.mark.parametrize(
    "over, source, per_position, selected, reduction, trained, softcap",
    [
        ("selection", "states", False, 50, "mean", False, None),
        ("selection", "logits", True, 500, "mean", True, 5.0),
        ("selection", "states", True, 500, "none", True, None),
        ("vocabulary", "states", True, 500, "mean", True, None),
        ("vocabulary", "logits", False, 500, "none", False, 5.0),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_pact_loss(
    dtype: torch.dtype,
    over: str,
    source: str,
    per_position: bool,
    selected: int,
    reduction: str,
    trained: bool,
    softcap: float | None,
) -> None:
    target = targets()
    leaves = head(dtype, trained)
    rows = ROWS if per_position else int((target != -100).sum())
    arguments = kl_arguments(source, rows, selected, leaves[1])

    def op(hidden, weight, bias):
        options = {"over": over, "reduction": reduction, "softcap": softcap, "bias": bias}
        return pk.pact_loss(hidden, weight, target, *arguments, **options).loss

    _, forward, backward = forward_and_backward(op, leaves)
    outputs = 4 * leaves[1].numel()
    check(forward, selected=selected, outputs=outputs)
    check(backward, selected=selected, outputs=outputs, formed_bytes=outputs if trained else 0)


@pytest.mark.parametrize("over, selected", [("selection", 500), ("vocabulary", 50)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_pact_kl(dtype: torch.dtype, reduction: str, over: str, selected: int) -> None:
    leaves = head(dtype, trained=True)
    arguments = kl_arguments("states", ROWS, selected, leaves[1])

    def op(hidden, weight, bias):
        return pk.pact_kl(hidden, weight, *arguments, over=over, reduction=reduction, bias=bias)

    _, forward, backward = forward_and_backward(op, leaves)
    outputs = 4 * leaves[1].numel()
    check(forward, selected=selected, outputs=outputs)
    check(backward, selected=selected, outputs=outputs, formed_bytes=outputs)


@pytest.mark.parametrize("name", ["linear_logsumexp", "selected_logits", "selected_confidences"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_values_by_row(dtype: torch.dtype, name: str) -> None:
    """The confidences' (N, K) logits, and their gradients, are as large as the output."""
    leaves = head(dtype, trained=True)
    selected = 300
    ids = torch.arange(selected)
    arguments = () if name == "linear_logsumexp" else (ids,)

    def op(hidden, weight, bias):
        return getattr(pk, name)(hidden, weight, *arguments, bias=bias, softcap=5.0)

    value, forward, backward = forward_and_backward(op, leaves)
    weight_bytes = 4 * leaves[1].numel()
    like_output = 3 * value.nbytes if name == "selected_confidences" else 0
    outputs = max(weight_bytes, value.nbytes)
    check(forward, selected=selected, outputs=outputs, formed_bytes=like_output)
    check(backward, selected=selected, outputs=outputs, formed_bytes=weight_bytes + like_output)


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_token_scores(dtype: torch.dtype, mode: str) -> None:
    hidden, weight, bias = (leaf.detach() for leaf in head(dtype, trained=False))
    base = hidden.flip(0)
    sample = torch.arange(ROWS) // 100
    with pk.workspace(CAP_MIB):
        memory = memory_of(
            lambda: pk.token_scores(
                hidden, weight, base, weight, sample, mode=mode, aligned_bias=bias, softcap=5.0
            )
        )
    check(memory)


def test_a_chunk_is_as_large_as_the_workspace_allows() -> None:
    """The cap is used, not only kept: small chunks are slow. Chunks of equal length leave some."""
    leaves = head(torch.float32, trained=False)
    target = targets()
    _, forward, _ = forward_and_backward(
        lambda hidden, weight, bias: pk.linear_cross_entropy(hidden, weight, target, bias=bias),
        leaves,
    )
    assert forward.extra_bytes > 0.7 * CAP_MIB * MIB
