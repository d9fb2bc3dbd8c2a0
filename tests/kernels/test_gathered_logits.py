"""Each row's own logits by the launcher, and the ops that read them, against float64."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from pact_kernels.kernels._kernels.gathered_logits import launch_gathered_logits
from pact_kernels.types import Head
from tests.ops.compare import outcome
from tests.ops.precision import assert_at_most_twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "tokens"), [(300, 16), (40, 19), (256, 1)])
def test_logits(dtype: torch.dtype, width: int, tokens: int) -> None:
    """Ragged steps and ragged programs; the buffer holds NaN before."""
    g = torch.Generator().manual_seed(0)
    states = torch.randn(5, width, generator=g).to(dtype)
    weight, bias = torch.randn(33, width, generator=g).to(dtype), torch.randn(33, generator=g)
    ids = torch.stack([torch.randperm(33, generator=g)[:tokens] for _ in range(5)])
    head = Head(weight, bias.to(dtype), 9.0, 0.5)
    out = torch.full((5, tokens), torch.nan)
    launch_gathered_logits(states, head, ids, out)
    z = 0.5 * (states.double() @ weight.double().T + bias.to(dtype).double())
    expected = (9.0 * (z / 9.0).tanh()).gather(1, ids)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sure", [False, True], ids=["unsure", "sure"])
@pytest.mark.parametrize("implementation", ["chunked", "triton"])
def test_a_distillation_step(implementation: str, sure: bool, dtype: torch.dtype) -> None:
    """Loss and gradients of a trained head. A sure student and teacher put nearly all on one token,
    whose entry of the gradient is a small difference; the rest stays above its clamp of 1e-6."""
    g = torch.Generator().manual_seed(1)
    rows, width, vocabulary, tokens = 20, 24, 130, 7
    weight = (torch.randn(vocabulary, width, generator=g) * 2 * width**-0.5).to(dtype)
    target = torch.randint(vocabulary, (rows,), generator=g)
    hidden = torch.randn(rows, width, generator=g)
    if sure:
        hidden = 2 * weight[target].float() + 0.2 * hidden
    target[::4] = -100
    teacher = hidden + 0.1 * torch.randn(rows, width, generator=g)
    kept = target != -100
    logits = teacher.to(dtype).double() @ weight.double().T
    values, ids = logits.log_softmax(-1)[kept].topk(tokens)
    step = torch.zeros(int(kept.sum()), dtype=torch.int64)

    def call(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        reference = pk.ReferenceLogits(values.float(), None, torch.zeros(len(step)))
        options = {"over": "vocabulary", "gate": None, "bias": b}
        return pk.pact_loss(h, w, target, ids, None, step, reference, **options).loss

    leaves = hidden.to(dtype), weight, torch.zeros(vocabulary).to(dtype)
    got, eager = (outcome(call, *leaves, implementation=i) for i in (implementation, "naive"))
    exact = outcome(call, *(leaf.double() for leaf in leaves), implementation="naive")
    assert_at_most_twice(got, eager, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["chunked", "triton"])
def test_the_same_set_for_every_row_is_one_set(implementation: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(9, 24, generator=g), torch.randn(70, 24, generator=g) / 2
    ids, step = torch.tensor([3, 60, 17]), torch.zeros(9, dtype=torch.int64)
    known = torch.randn(9, 70, generator=g).log_softmax(-1)[:, ids]
    reference = pk.ReferenceLogits(known, None, torch.zeros(9))

    def call(tokens: torch.Tensor, weights: torch.Tensor | None) -> dict[str, torch.Tensor]:
        def op(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            options = {"over": "vocabulary", "gate": None, "bias": b}
            return pk.pact_kl(h, w, tokens, weights, step, reference, **options)

        leaves = (t.to(dtype) for t in (hidden, weight, torch.zeros(70)))
        return outcome(op, *leaves, implementation=implementation)

    one, many = call(ids, torch.ones(3)), call(ids.expand(9, -1), None)
    for name, value in one.items():
        # Its logits are rounded as those of its log-sum-exp are, where the set is a row's own.
        rtol = 1e-5 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(
            many[name], value, rtol=rtol, atol=rtol * float(value.abs().max())
        )
