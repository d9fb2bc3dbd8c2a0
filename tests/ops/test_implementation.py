"""The two settings, each for the length of a block."""

from __future__ import annotations

import sys

import pytest
import torch

import pact_kernels as pk
from pact_kernels.implementation import DEFAULT_WORKSPACE_MIB, is_naive, workspace_bytes

settings = sys.modules["pact_kernels.implementation"]  # `pk.implementation` is the function
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_implementations_nest() -> None:
    assert not is_naive()
    with pk.implementation("naive"):
        assert is_naive()
        with pk.implementation("chunked"):
            assert not is_naive()
        assert is_naive()
    assert not is_naive()


def test_an_exception_restores_the_implementation() -> None:
    with pytest.raises(ZeroDivisionError), pk.implementation("naive"):
        raise ZeroDivisionError
    assert not is_naive()


def test_an_unknown_implementation_is_refused() -> None:
    message = r"one of \('naive', 'chunked', 'triton'\), got 'dense'"
    with pytest.raises(ValueError, match=message), pk.implementation("dense"):
        pass
    assert not is_naive()


def test_triton_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_has_triton", lambda: False)
    message = "triton, which is not installed: pip install triton"
    with pytest.raises(ValueError, match=message), pk.implementation("triton"):
        pass


def test_kernels_run_where_they_are_asked_for_and_never_in_fp64() -> None:
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert not settings.uses_triton(single)  # a CPU tensor: chunked
    with pk.implementation("triton"):
        assert settings.uses_triton(single)
        assert not settings.uses_triton(double)
    with pk.implementation("chunked"):
        assert not settings.uses_triton(single)


def test_workspaces_nest_and_are_restored() -> None:
    default = {device: DEFAULT_WORKSPACE_MIB[device.type] * 2**20 for device in (CPU, GPU)}
    assert {device: workspace_bytes(device) for device in (CPU, GPU)} == default
    with pytest.raises(ZeroDivisionError), pk.workspace(2):
        assert workspace_bytes(CPU) == workspace_bytes(GPU) == 2**21
        with pk.workspace(0.5):
            assert workspace_bytes(CPU) == 2**19
        assert workspace_bytes(CPU) == 2**21
        raise ZeroDivisionError
    assert workspace_bytes(CPU) == default[CPU]


@pytest.mark.parametrize("mib", [0, -1.0, float("nan")])
def test_a_workspace_is_positive(mib: float) -> None:
    with pytest.raises(ValueError, match="must be positive"), pk.workspace(mib):
        pass


def test_a_backward_outside_the_block_keeps_its_workspace() -> None:
    """The cap is read in the forward; the backward of reduction='none' runs the slabs again."""
    seen = []
    hidden = torch.randn(8, 4, requires_grad=True)
    with pk.workspace(1e-4):
        loss = pk.linear_cross_entropy(hidden, torch.randn(9, 4), torch.arange(8), reduction="none")
    loss.register_hook(lambda grad: seen.append(workspace_bytes(CPU)))
    loss.sum().backward()
    assert seen == [64 * 2**20]
    assert hidden.grad.any()
