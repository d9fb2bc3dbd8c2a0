"""The output head, which travels whole: its parts, and its map from products to logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pact_kernels.types import Head

VOCABULARY, WIDTH = 7, 3


def head(bias: bool = True, softcap: float | None = 2.5) -> Head:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=g, dtype=torch.float64)
    biases = torch.randn(VOCABULARY, generator=g, dtype=torch.float64) if bias else None
    return Head(weight, biases, softcap, -0.7)


def states(rows: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, WIDTH, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_some_tokens_have_the_logits_that_they_have_among_all(bias: bool) -> None:
    whole, ids = head(bias), torch.tensor([6, 0, 3])
    logits = whole.logits(states())
    torch.testing.assert_close(whole.select(ids).logits(states()), logits[:, ids])
    torch.testing.assert_close(whole.tile(2, 6).logits(states()), logits[:, 2:6])
    assert whole.tile(2, 6).weight.data_ptr() == whole.weight[2:].data_ptr()  # no copy


@pytest.mark.parametrize("softcap", [2.5, None])
def test_a_temperature_divides_the_logits(softcap: float | None) -> None:
    one = head(softcap=softcap)
    torch.testing.assert_close(one.at_temperature(1.7).logits(states()), one.logits(states()) / 1.7)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_the_slope_is_the_derivative_of_the_finished_logits(
    softcap: float | None, scale: float
) -> None:
    bias = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    one = Head(torch.eye(3), bias, softcap, scale)

    def finished(raw: Tensor) -> Tensor:
        return one.finish_(raw.clone())

    raw = torch.tensor([[-9.0, 0.1, 4.0]], dtype=torch.float64)
    step = 1e-6
    numerical = (finished(raw + step) - finished(raw - step)) / (2 * step)
    slope = one.slope(finished(raw))
    torch.testing.assert_close(torch.as_tensor(slope).expand(1, 3).double(), numerical)


def test_gradients_come_back_through_a_selection() -> None:
    weight = head().weight.requires_grad_()
    Head(weight).select(torch.tensor([2])).weight.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad.sum(1), WIDTH * torch.eye(VOCABULARY, dtype=weight.dtype)[2])
