"""SIGKILL at any moment, in saves and while the cache is filled: a run ends as if left alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from tests.soak.chain import Alone, chain, left_alone
from tests.soak.victim import Moment, Settings

KILLS = 5
"""Kills of each test, at least: 20 of all; `make soak` has hundreds."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return left_alone(tmp_path_factory.mktemp("kills"), Settings())


def _at_changes(seed: int, alone: Alone) -> Iterator[Moment]:
    """Before the n-th call that changes a file."""
    draw = random.Random(seed)
    return (Moment(change=draw.randint(1, alone.changes)) for _ in count())


def _by_the_clock(seed: int, alone: Alone) -> Iterator[Moment]:
    draw = random.Random(seed)
    return (Moment(after_s=draw.uniform(0, alone.duration_s)) for _ in count())


@pytest.mark.parametrize("moments", [_at_changes, _by_the_clock])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_as_if_left_alone(
    seed: int, moments: type, alone: Alone, tmp_path: Path
) -> None:
    kills = 0
    for number in count():
        planned = islice(moments(seed + 100 * number, alone), KILLS - kills)
        ended = chain(alone, tmp_path / str(number), planned)
        assert not ended.differs, ended.log
        kills += len(ended.codes) - 1
        if kills >= KILLS:
            break
