"""Autotuning: what is tried, what is kept, and that nothing happens unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from triton.runtime.errors import OutOfResources

import pact_kernels as pk
from pact_kernels.dispatch import is_autotuning
from pact_kernels.kernels._launch.tuning import forget, tuned

HERE = torch.zeros(1)
VARIATIONS = {"rows": (16, 32), "warps": (4, 8)}


@dataclass(frozen=True)
class Config:
    rows: int
    warps: int


DEFAULT = Config(16, 4)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    forget()
    yield
    forget()


class Card:
    """Runs configurations, and says how long each took."""

    def __init__(self, times_ms: dict[tuple[int, int], float]) -> None:
        self.times_ms, self.ran = times_ms, list[Config]()

    def run(self, config: Config) -> None:
        self.ran.append(config)
        if (config.rows, config.warps) not in self.times_ms:
            raise OutOfResources(2, 1, "shared memory")

    def timer(self, call: Callable[[], None]) -> float:
        call()
        last = self.ran[-1]
        return self.times_ms[last.rows, last.warps]

    def choose(self, *key: int) -> Config:
        return tuned(key, DEFAULT, VARIATIONS, self.run, HERE, self.timer)


def test_the_default_is_taken_unasked() -> None:
    card = Card({(16, 4): 3.0, (32, 8): 1.0})
    assert card.choose() == DEFAULT
    assert card.ran == []


def test_the_fastest_that_fits_is_kept_and_remembered_by_its_key() -> None:
    card = Card({(16, 4): 3.0, (16, 8): 2.0, (32, 8): 1.0})  # (32, 4) does not fit
    with pk.autotune():
        assert card.choose(7) == Config(32, 8)
    assert card.ran == [DEFAULT, Config(16, 8), Config(32, 4), Config(32, 8)]
    assert card.choose(7) == Config(32, 8)  # after the block too
    assert card.choose(8) == DEFAULT
    assert len(card.ran) == 4


def test_a_default_that_is_fastest_stays() -> None:
    with pk.autotune():
        assert Card({(16, 4): 1.0, (16, 8): 2.0, (32, 4): 2.0, (32, 8): 2.0}).choose() == DEFAULT


def test_without_a_gpu_nothing_is_timed() -> None:
    card = Card({(16, 4): 1.0})
    with pk.autotune():
        assert tuned((), DEFAULT, VARIATIONS, card.run, HERE) == DEFAULT
    assert card.ran == []


def test_an_exception_ends_autotuning() -> None:
    with pytest.raises(ZeroDivisionError), pk.autotune():
        assert is_autotuning()
        raise ZeroDivisionError
    assert not is_autotuning()


def test_ops_give_the_same_inside_the_block() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 24, generator=g), torch.randn(40, 24, generator=g)
    with pk.implementation("triton"):
        outside = pk.linear_logsumexp(hidden, weight)
        with pk.autotune():
            inside = pk.linear_logsumexp(hidden, weight)
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-6)
