"""What tests of the ops share: one thread, the implementations, and how much is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.implementations import KERNELS, running

# Of property tests: the same cases in every run of the suite, or others and thirty times as many
# with HYPOTHESIS_PROFILE=long. A test states its own number, for 100 examples of a profile.
COMMON: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("suite", max_examples=100, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=3000, derandomize=False, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The problems are small, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["chunked", *KERNELS])
def implementation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Every implementation in turn, which the ops of the test take."""
    with running(request.param, monkeypatch) as name:
        yield name
