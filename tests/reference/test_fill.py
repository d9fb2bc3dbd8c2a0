"""Filling goes on after a kill, computes what is damaged anew, and splits over processes."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset

from pact.reference import CachedReference, fill_cache
from pact.reference.shards import is_valid
from tests.reference.problem import COUNT, Counting, problem


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("pact.reference.shards.SHARD_EXAMPLES", 4)


def contents(cache):
    return cache.table.to_dict()


def shard(folder, number):
    return folder / f"shard-{number:05d}.arrow"


def test_after_a_kill_only_what_is_missing_is_computed(tmp_path):
    p = problem()
    whole = Counting()
    expected = contents(p.fill(whole, tmp_path / "whole", max_tokens=1))  # an example a batch
    assert whole.calls == COUNT - 1  # one example has no rows
    folder = tmp_path / "killed"
    with pytest.raises(ConnectionError):
        p.fill(Counting(fail_after=6), folder, max_tokens=1)  # inside the second shard
    assert [path.name for path in folder.glob("*.arrow")] == ["shard-00000.arrow"]
    rest = Counting()
    cache = p.fill(rest, folder, max_tokens=1)
    assert rest.calls == COUNT - 1 - 4  # a shard was whole
    assert contents(cache) == expected
    again = Counting()
    assert contents(p.fill(again, folder)) == expected
    assert again.calls == 0


def test_what_killed_runs_left_is_removed(tmp_path):
    left = tmp_path / "shard-00001.123.partial"
    left.write_bytes(b"half a shard")
    (tmp_path / "shard-00001.json.123.partial").write_bytes(b"{")
    problem().fill(Counting(), tmp_path)
    assert not list(tmp_path.glob("*partial"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


def lose_checksum(path):
    path.with_suffix(".json").unlink()


def break_checksum(path):
    path.with_suffix(".json").write_text("[1")


def exchange(path):
    """Another shard of the cache, whole but in the wrong place."""
    other = shard(path.parent, 0)
    for suffix in (".arrow", ".json"):
        path.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())


@pytest.mark.parametrize("damage", [truncate, flip, remove, lose_checksum, break_checksum])
def test_a_damaged_shard_is_never_read_and_is_computed_anew(tmp_path, damage):
    p = problem()
    cache = p.fill(Counting(), tmp_path, max_tokens=1)
    expected = contents(cache)
    damage(shard(tmp_path, 1))
    assert not is_valid(tmp_path, 1, cache.layout)
    fresh = type(cache)(tmp_path, cache.layout, cache.over)
    with pytest.raises(ValueError, match="shard-00001.arrow is missing or damaged"):
        CachedReference(fresh)
    counting = Counting()
    assert contents(p.fill(counting, tmp_path, max_tokens=1)) == expected
    assert counting.calls == 4


def test_a_shard_in_the_place_of_another_is_refused(tmp_path):
    cache = problem().fill(Counting(), tmp_path)
    exchange(shard(tmp_path, 1))
    with pytest.raises(ValueError, match="shard-00001.arrow"):
        CachedReference(type(cache)(tmp_path, cache.layout, cache.over))


def test_two_processes_fill_the_same_table(tmp_path):
    p = problem("vocabulary")
    expected = contents(p.fill(Counting(), tmp_path / "one"))
    folder = tmp_path / "two"
    first, second = Counting(), Counting()
    early = p.fill(first, folder, process_index=0, num_processes=2)
    with pytest.raises(ValueError, match="on all processes"):
        CachedReference(early)
    (folder / "shard-00000.77.partial").write_bytes(b"the other process at work")
    late = p.fill(second, folder, process_index=1, num_processes=2)
    assert (folder / "shard-00000.77.partial").exists()
    assert contents(early) == contents(late) == expected
    assert first.rows > 0 and second.rows > 0
    assert first.rows + second.rows == late.num_rows


def test_facts_for_a_person(tmp_path):
    p = problem()
    cache = p.fill(Counting(), tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["examples"] == COUNT
    assert meta["rows"] == cache.num_rows == sum(p.batch(*range(COUNT))["row_step"] >= 0)
    assert meta["bytes_per_row"] == 2 * 8 * 2
    assert meta["contexts"] == ["full", "post"]
    before = (tmp_path / "meta.json").read_text()
    p.fill(Counting(), tmp_path)
    assert (tmp_path / "meta.json").read_text() == before


def test_the_progress_counts_rows_also_those_already_there(tmp_path, caplog):
    p = problem()
    with pytest.raises(ConnectionError):
        p.fill(Counting(fail_after=6), tmp_path, max_tokens=1)
    with caplog.at_level(logging.INFO, "pact.common.progress"):
        p.fill(Counting(), tmp_path / "other")  # shown nowhere
        assert not [r for r in caplog.records if r.name == "pact.common.progress"]
        cache = fill_cache(p.dataset, Counting(), p.objective, p.collator, folder=tmp_path)
    assert f"reference: {cache.num_rows} of {cache.num_rows} rows in" in caplog.text


@pytest.mark.parametrize("as_list", [False, True])
def test_padded_data_are_refused(tmp_path, as_list):
    """A cache reads ids and labels as they are: padding would be taken for tokens."""
    p = problem()
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in p.dataset]
    rows[1]["attention_mask"][-1] = 0
    dataset = rows if as_list else Dataset.from_list(rows)
    with pytest.raises(ValueError, match="must not be padded, got zeros in attention_mask"):
        p._replace(dataset=dataset).fill(Counting(), tmp_path)
