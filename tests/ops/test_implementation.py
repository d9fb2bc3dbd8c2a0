"""The two settings, each for the length of a block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread
from types import ModuleType

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pact_kernels as pk
import pact_kernels.ops._operators.backend as backend_module
from pact_kernels.dispatch import DEFAULT_WORKSPACE_MIB, is_naive, workspace_bytes
from tests.ops.every_op import NAMES, every_op, leaves_of, small, value_of

settings = sys.modules["pact_kernels.dispatch"]  # `pk.implementation` is the function
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


@pytest.mark.parametrize("mib", [0, -1.0, float("nan"), float("inf")])
def test_a_workspace_is_positive(mib: float) -> None:
    with pytest.raises(ValueError, match="must be positive"), pk.workspace(mib):
        pass


Ran = list[tuple[str, str, object]]
OPS = every_op(small())
BY_ROW = [
    name for name in NAMES if name.startswith(("selected", "linear_logsumexp")) or "by row" in name
]
"""Ops that return a value of every row."""
RUN_AGAIN = ("linear_cross_entropy by row", "selected_logits", "linear_logsumexp")
"""Ops whose backward runs the rows again."""


@pytest.mark.parametrize("name", BY_ROW)
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ("triton", None),
        (None, "triton"),
        ("triton", "chunked"),
        (None, "naive"),
        ("naive", "triton"),
    ],
)
def test_a_backward_runs_as_its_forward_did(
    name: str, forward: str | None, backward: str | None, ran: Ran
) -> None:
    """Wherever it is called: the implementation and the cap are those of the forward's block."""
    h, w, b = leaves_of(small())
    with block(forward), pk.workspace(0.01):
        loss = value_of(OPS[name](h, w, b)).sum()
        again = value_of(OPS[name](h, w, b)).sum()
    ran_forward = len(ran)
    assert (ran_forward > 0) == (forward != "naive")
    with block(backward):
        loss.backward(retain_graph=True)
        assert h.grad is not None and h.grad.any()
        loss.backward()
    with pk.workspace(1.0):
        again.backward()
    if forward == "naive":  # nor does its backward call an operator
        assert not ran
        return
    assert packages(ran) == {"kernels" if forward == "triton" else "chunked"}
    assert {limit for _, _, limit in ran} == {int(0.01 * 2**20)}
    if name in RUN_AGAIN:
        assert len(ran) > ran_forward  # there is what to see


SUMS = [
    name
    for name in NAMES
    if name.startswith(("linear_cross_entropy", "pact")) and "by row" not in name
]


@pytest.mark.parametrize("name", SUMS)
def test_a_reduced_loss_forms_its_gradients_in_the_forward(name: str, ran: Ran) -> None:
    h, w, b = leaves_of(small())
    with pk.implementation("triton"):
        loss = value_of(OPS[name](h, w, b))
    assert packages(ran) == {"kernels"}
    ran.clear()
    (3.0 * loss).backward()
    assert not ran and h.grad.any()


@pytest.mark.parametrize("name", RUN_AGAIN)
def test_a_backward_in_another_thread(name: str, ran: Ran) -> None:
    """As autograd's own threads of a GPU are: none inherits the caller's blocks."""
    h, w, b = leaves_of(small())
    with pk.implementation("triton"):
        loss = value_of(OPS[name](h, w, b)).sum()
    with pk.implementation("chunked"):
        thread = Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert packages(ran) == {"kernels"} and h.grad.any()


@pytest.mark.parametrize("name", RUN_AGAIN)
def test_a_compiled_backward_runs_as_its_forward_did(name: str, ran: Ran) -> None:
    """A call in another block is compiled anew."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h, w, b: value_of(OPS[name](h, w, b)).sum(), fullgraph=True, backend="aot_eager"
    )
    for forward, backward, expected in (("triton", "chunked", "kernels"), (None, None, "chunked")):
        h, w, b = leaves_of(small())
        with block(forward):
            loss = compiled(h, w, b)
        with block(backward):
            loss.backward()
        assert packages(ran) == {expected} and h.grad.any()
        ran.clear()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", RUN_AGAIN)
def test_what_a_checkpoint_computes_again_follows_the_block_it_is_in(
    name: str, reentrant: bool, ran: Ran
) -> None:
    """Its backward is the first forward's, but with `use_reentrant` that of the second."""
    h, w, b = leaves_of(small())
    with pk.implementation("triton"):
        loss = checkpoint(OPS[name], h, w, b, use_reentrant=reentrant).sum()
    assert packages(ran) == {"kernels"}
    ran.clear()
    with pk.implementation("chunked"):
        loss.backward()
    assert [package for package, _, _ in ran] == ["chunked", "chunked" if reentrant else "kernels"]
    assert h.grad.any()


@contextmanager
def block(name: str | None) -> Iterator[None]:
    with pk.implementation(name) if name else nullcontext():
        yield


def packages(ran: Ran) -> set[str]:
    return {package for package, _, _ in ran}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Package, function and cap of whatever code an operator runs from here on."""
    ran: Ran = []
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
    return ran
