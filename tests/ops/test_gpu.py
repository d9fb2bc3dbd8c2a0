"""The ops on a GPU at the sizes of real models, held against fp64: `pytest -m gpu`.

The tests of `tests/kernels` run on the GPU too where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import pact_kernels as pk

MIB = 2**20
SHAPES = [(4096, 128256, 4096), (8192, 262144, 2304)]  # (N, V, D): Llama 3 8B and Gemma 2 2B
SELECTED = [50, 200, 1000]  # in registers, in registers at a larger tile, and beyond them
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of 80 GB"),
]


class Problem(NamedTuple):
    """A head, states of student and reference, in bf16 on the GPU."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    target: Tensor  # (N,), a tenth of it ignored
    token_ids: Tensor  # (K,)
    token_weights: Tensor  # (K,)
    step: Tensor  # (N,)
    reference: pk.ReferenceLogits


def problem(shape: tuple[int, int, int], selected: int) -> Problem:
    rows, vocabulary, width = shape
    g = torch.Generator("cuda").manual_seed(0)
    options = {"generator": g, "device": "cuda"}
    hidden = torch.randn(rows, width, **options).bfloat16()
    weight = (torch.randn(vocabulary, width, **options) * 2 / width**0.5).bfloat16()
    target = torch.randint(vocabulary, (rows,), **options)
    target[torch.rand(rows, **options) < 0.1] = -100
    token_ids = torch.randperm(vocabulary, **options)[:selected].sort().values
    contexts = []
    for noise in (0.3, 0.6):  # a reference near the student, and one less near
        states = (hidden.float() + noise * torch.randn(rows, width, **options)).bfloat16()
        with torch.no_grad():
            logits = pk.selected_logits(states, weight, token_ids)
            contexts.append((logits, pk.linear_logsumexp(states, weight)))
    (full, full_lse), (post, post_lse) = contexts
    return Problem(
        hidden,
        weight,
        target,
        token_ids,
        torch.rand(selected, **options) + 0.1,
        torch.arange(rows, device="cuda") % 30,
        pk.ReferenceLogits(full, post, full_lse, post_lse),
    )


Call = Callable[[Tensor, Tensor], Tensor]


def outcome(call: Call, p: Problem, dtype: torch.dtype, implementation: str) -> tuple[Tensor, ...]:
    """Loss and gradient by the states."""
    hidden = p.hidden.to(dtype).requires_grad_()
    with pk.implementation(implementation):
        loss = call(hidden, p.weight.to(dtype))
        (0.37 * loss).backward()
    assert hidden.grad is not None
    return loss.detach().double(), hidden.grad.double()


@pytest.fixture(params=SHAPES, ids=["llama", "gemma"])
def shape(request: pytest.FixtureRequest) -> Iterator[tuple[int, int, int]]:
    yield request.param
    torch.cuda.empty_cache()


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("over", ["selection", "vocabulary"])
    @pytest.mark.parametrize("selected", SELECTED)
    def test_pact_loss_errs_no_more_than_twice_eager_torch(
        self, shape: tuple[int, int, int], selected: int, over: str
    ) -> None:
        p = problem(shape, selected)

        def call(hidden: Tensor, weight: Tensor) -> Tensor:
            reference = pk.ReferenceLogits(
                *(t.to(hidden.dtype) for t in p.reference if t is not None)
            )
            kl = p.token_ids, p.token_weights, p.step, reference
            return pk.pact_loss(hidden, weight, p.target, *kl, over=over).loss

        exact = outcome(call, p, torch.float64, "chunked")
        ours = outcome(call, p, torch.bfloat16, "triton")
        eager = outcome(call, p, torch.bfloat16, "naive")
        for got, theirs, value in zip(ours, eager, exact, strict=True):
            error, bound = (float((x - value).square().mean().sqrt()) for x in (got, theirs))
            assert error <= 2 * bound + 1e-3 * float(value.square().mean().sqrt())

    def test_workspace_is_all_the_memory_that_is_taken(self, shape: tuple[int, int, int]) -> None:
        p = problem(shape, 50)
        hidden = p.hidden.clone().requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with pk.workspace(256):
            pk.linear_cross_entropy(hidden, p.weight, p.target).backward()
        taken = torch.cuda.max_memory_allocated() - before
        gradients = 2 * p.hidden.nbytes  # formed in the forward, scaled in the backward
        assert taken <= 256 * MIB + gradients + 64 * MIB  # and what cuBLAS keeps

    def test_rows_alone_never_wait(self, shape: tuple[int, int, int]) -> None:
        p = problem(shape, 50)
        hidden = p.hidden.clone().requires_grad_()
        kl = p.token_ids, p.token_weights, p.step, p.reference
        pk.pact_loss(hidden, p.weight, p.target, *kl).loss.backward()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pk.pact_loss(hidden, p.weight, p.target, *kl).loss.backward()
            with torch.no_grad():
                pk.linear_logsumexp(hidden, p.weight)
                pk.selected_confidences(hidden, p.weight, p.token_ids)
        finally:  # a wait has raised by now
            torch.cuda.set_sync_debug_mode("default")
        assert bool(hidden.grad.isfinite().all()) and bool(hidden.grad.any())

    def test_two_runs_agree_to_the_bit(self, shape: tuple[int, int, int]) -> None:
        p = problem(shape, 50)
        with torch.no_grad():
            first, second = (pk.linear_logsumexp(p.hidden, p.weight) for _ in range(2))
            alone = pk.linear_logsumexp(p.hidden[:1], p.weight)
        assert torch.equal(first, second)
        assert torch.equal(first[:1], alone)
