"""What tests of the ops share: one thread, and the implementations to run through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.implementations import KERNELS, running


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
