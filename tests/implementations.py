"""The implementations that a test of the ops runs through, as a fixture's parameters.

The kernels run in Triton's interpreter, and where there is a GPU on it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import pact_kernels as pk

# Without triton (it is there for Linux alone) no kernel can even be imported.
KERNELS: list[Any] = ["triton"] if find_spec("triton") else []
if KERNELS and torch.cuda.is_available():
    KERNELS.append(pytest.param("triton on the GPU", marks=pytest.mark.gpu))


def on_gpu() -> bool:
    """Whether the test at hand launches its kernels on a GPU."""
    from pact_kernels.kernels._launch import configs

    return not configs.is_interpreted(torch.empty(0))


def take_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems, too, take them where large ones do."""
    monkeypatch.setattr("pact_kernels.kernels._launch.configs.LEAST_EXPONENTIAL_FLOPS", 0)


@contextmanager
def running(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the ops through an implementation; yields its name as the ops know it."""
    if name == "triton on the GPU":
        from tests.kernels.gpu import launch_on

        launch_on(torch.device("cuda"), monkeypatch)
        name = "triton"
    if name == "triton":
        take_exponentials(monkeypatch)
    with pk.implementation(name):
        yield name
