"""What the tests of kernels share: they need triton, and may ask for poisoned buffers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tests.implementations import take_exponentials
from tests.kernels.poison import poison

# Without triton (it is there for Linux alone) no kernel can even be imported.
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


# Where there is a GPU, every test runs in the interpreter and on it.
PLACES = ["interpreter"]
if torch.cuda.is_available():
    PLACES.append(pytest.param("gpu", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True, params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launches of the test run."""
    if request.param == "gpu":
        from tests.kernels.gpu import launch_on

        launch_on(torch.device("cuda"), monkeypatch)


@pytest.fixture(autouse=True)
def exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    take_exponentials(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fresh buffer holds NaN."""
    poison(monkeypatch)
