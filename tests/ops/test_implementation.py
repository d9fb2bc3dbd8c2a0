"""The two settings, each for the length of a block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

import pytest
import torch

import pact_kernels as pk
import pact_kernels.ops.backend as backend_module
from pact_kernels.implementation import DEFAULT_WORKSPACE_MIB, is_naive, workspace_bytes
from tests.ops.test_operators import leaves, ops

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


OPS = ops("none", torch.float32)  # by row, whose backward runs the rows again


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("forward", "backward"),
    [("triton", None), (None, "triton"), ("triton", "chunked"), (None, "naive")],
)
def test_a_backward_runs_as_its_forward_did(
    name: str, forward: str | None, backward: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is called: the implementation and the cap are those of the forward's block."""
    ran: list[tuple[str, str, object]] = []
    spy(monkeypatch, ran)
    h, w, b = leaves(torch.float32)
    with block(forward), pk.workspace(0.01):
        loss = OPS[name](h, w, b).sum()
        again = OPS[name](h, w, b).sum()
    assert ran
    ran_forward = len(ran)
    with block(backward):
        loss.backward(retain_graph=True)
        assert h.grad is not None and h.grad.any()
        loss.backward()
    with pk.workspace(1.0):
        again.backward()
    expected = "kernels" if forward == "triton" else "chunked"
    assert {package for package, _, _ in ran} == {expected}
    assert {limit for _, _, limit in ran} == {int(0.01 * 2**20)}
    if name in ("linear_cross_entropy", "selected_logits", "linear_logsumexp"):
        assert len(ran) > ran_forward  # these run again in the backward: there is what to see


@contextmanager
def block(name: str | None) -> Iterator[None]:
    with pk.implementation(name) if name else nullcontext():
        yield


def spy(monkeypatch: pytest.MonkeyPatch, ran: list[tuple[str, str, object]]) -> None:
    """Note package, function and cap of whatever code an operator runs."""
    real = backend_module.backend

    class Spied:
        def __init__(self, module: ModuleType) -> None:
            self.module = module

        def __getattr__(self, function: str) -> object:
            def noted(*args: object, **kwargs: object) -> object:
                package = self.module.__name__.split(".")[1]
                ran.append((package, function, kwargs["limit_bytes"]))
                return getattr(self.module, function)(*args, **kwargs)

            return noted

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pact_kernels.ops.") and hasattr(
            module, "backend"
        ):
            if module.backend is real:
                monkeypatch.setattr(
                    module, "backend", lambda stem, chosen: Spied(real(stem, chosen))
                )
