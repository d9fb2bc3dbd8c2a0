"""Whatever a file holds, its reader returns or raises a ValueError.

A fixed few hundred changes of valid files; `make fuzz` looks on for as long as it is told to.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

COUNT = {"saved": 50, "jsonl": 100}
"""Changes of a target where they are not 300; most are read in a few milliseconds."""


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("ERROR")


@pytest.mark.parametrize("name", TARGETS)
def test_a_valid_file_is_read(tmp_path, name):
    (tmp_path / "seeds").mkdir()
    seeds = TARGETS[name].seeds(tmp_path / "seeds")
    assert seeds
    for number, seed in enumerate(seeds):
        folder = tmp_path / str(number)
        folder.mkdir()
        TARGETS[name].read(seed, folder)  # raises nothing


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused(tmp_path, name):
    (tmp_path / "seeds").mkdir()
    seeds = TARGETS[name].seeds(tmp_path / "seeds")
    refused = 0
    count = COUNT.get(name, 300)
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        stream = random.Random(f"{name} {number}")
        data = mutated(stream.choice(seeds), stream)
        try:
            TARGETS[name].read(data, folder)
        except ValueError as error:
            assert str(error), data
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, change {number}: {data!r}") from error
    assert refused > count / 10 or name == "manifest"
