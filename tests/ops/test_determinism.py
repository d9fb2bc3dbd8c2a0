"""The same call, the same bits; torch's deterministic mode; incoming gradients of any strides.

How far a row's results may depend on the other rows is in `test_properties` and, where sums are
exact, bit for bit in tests/kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from tests.implementations import KERNELS
from tests.ops.every_op import NAMES, every_op, leaves_of, small, value_of
from tests.ops.problem import problem

FEW = [
    "linear_cross_entropy",
    "linear_logsumexp",
    "selected_logits",
    "pact_kl",
    "pact_loss over the vocabulary by row",
]
"""One for each operator and both reductions: what the interpreter has time for."""
all_ops = pytest.mark.parametrize(
    "implementation, name",
    [*(("chunked", name) for name in NAMES), *((k, name) for k in KERNELS for name in FEW)],
    indirect=["implementation"],
)


def results(name: str, incoming: Tensor | None = None) -> list[Tensor]:
    """Value and gradients of an op on the small problem."""
    p = small()
    given = leaves_of(p)
    value = value_of(every_op(p)[name](*given))
    incoming = torch.ones_like(value) if incoming is None else incoming
    return [value.detach(), *torch.autograd.grad(value, given, incoming)]


@all_ops
@pytest.mark.usefixtures("implementation")
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    with pk.workspace(0.002):  # several chunks, whose head gradients are added up
        first, second = results(name), results(name)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Torch refuses what is not deterministic, and fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@all_ops
@pytest.mark.usefixtures("implementation")
def test_torchs_deterministic_mode(name: str, request: pytest.FixtureRequest) -> None:
    """Works, and no result is made of memory that nothing was written to."""
    expected = results(name)
    request.getfixturevalue("deterministic")
    assert all(torch.equal(a, b) for a, b in zip(results(name), expected, strict=True))


@pytest.mark.usefixtures("implementation", "deterministic")
def test_token_scores_in_torchs_deterministic_mode() -> None:
    p = problem(rows=6, hidden=3, vocabulary=13, selected=4, ignored=0.0)
    hidden, weight = p.hidden.float(), p.weight.float()
    first, second = (
        pk.token_scores(hidden, weight, hidden.flip(0), weight, p.step % 2) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and bool(torch.isfinite(a).all())


@all_ops
@pytest.mark.usefixtures("implementation")
def test_an_incoming_gradient_of_any_strides(name: str) -> None:
    """Broadcast from one number, every second entry of a vector, columns first."""
    value = results(name)[0]
    one = torch.tensor(0.37)
    dense = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
    apart = torch.stack((dense, dense + 1), -1)[..., 0]
    pairs = [(one.expand(value.shape), torch.full_like(value, 0.37)), (apart, dense)]
    if value.dim() == 2:
        pairs.append((dense.T.contiguous().T, dense))
        pairs.append((dense[0].expand(value.shape), dense[0].repeat(value.shape[0], 1)))
    for strided, contiguous in pairs:
        before = strided.clone()
        for a, b in zip(results(name, strided), results(name, contiguous), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert torch.equal(strided, before)  # an incoming gradient is never written
