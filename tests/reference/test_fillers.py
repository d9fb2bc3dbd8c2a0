"""Launches that fill one cache at once: each shard is written by one, and nothing is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pact.reference.folder import check_cache_dir
from tests.reference.problem import Counting, problem

OTHER_LAUNCH = """
import sys, time
from pathlib import Path
from filelock import FileLock

folder = Path(sys.argv[1])
with FileLock(folder / f"{sys.argv[2]}.lock"):
    partial = folder / f"{sys.argv[2]}.x.5.partial"
    partial.write_bytes(b"half a shard")
    print("at work", flush=True)
    while not (folder / "shard-00002.json").exists():
        time.sleep(0.01)
    (folder.parent / "seen").write_text(str(partial.exists()))
"""
"""Holds a file until the last shard is there, and dies before it is written."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("pact.reference.shards.SHARD_EXAMPLES", 4)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["meta.json", *(f"shard-0000{n}.{kind}" for n in range(3) for kind in ("arrow", "json"))]


@pytest.mark.parametrize("name", ["shard-00001", "meta"])
def test_the_partial_file_of_a_live_filler_is_left_and_its_shard_waited_for(tmp_path, name):
    p = problem()
    expected = p.fill(Counting(), tmp_path / "alone").table.to_dict()
    folder = tmp_path / "shared"
    folder.mkdir()
    argv = [sys.executable, "-c", OTHER_LAUNCH, str(folder), name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "at work\n"
        cache = p.fill(Counting(), folder)
    assert (tmp_path / "seen").read_text() == "True"
    assert cache.table.to_dict() == expected
    if name == "meta":  # is not waited for: the next launch writes what only people read
        p.fill(Counting(), folder)
    assert names(folder) == WHOLE


def test_two_launches_at_once_end_with_one_whole_cache(tmp_path):
    p = problem()
    alone = Counting()
    expected = p.fill(alone, tmp_path / "alone", max_tokens=1).table.to_dict()
    fillers = [Counting(), Counting()]
    with ThreadPoolExecutor(2) as pool:
        filled = pool.map(lambda one: p.fill(one, tmp_path / "both", max_tokens=1), fillers)
        assert [cache.table.to_dict() for cache in filled] == [expected, expected]
    assert sum(one.rows for one in fillers) == alone.rows  # no shard was computed twice
    assert names(tmp_path / "both") == WHOLE


def test_what_killed_runs_left_of_whole_files_is_removed(tmp_path):
    p = problem()
    p.fill(Counting(), tmp_path)
    for name in ("meta.json.12.partial", "shard-00001.json.ab.partial", "shard-00002.lock"):
        (tmp_path / name).write_text("{")
    again = Counting()
    p.fill(again, tmp_path)
    assert again.calls == 0
    assert names(tmp_path) == WHOLE


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(tmp_path, monkeypatch):
    """The second shard finds it full; the first stays."""
    p = problem()
    p.fill(Counting(), tmp_path / "whole", max_tokens=1)
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 6:  # files and folder of the facts and of the first shard's two files
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device.*set cache_dir"):
        p.fill(Counting(), tmp_path / "full")
    left = names(tmp_path / "full")
    assert [name for name in left if name != "shard-00001.lock"] == WHOLE[:3]
    monkeypatch.undo()
    monkeypatch.setattr("pact.reference.shards.SHARD_EXAMPLES", 4)
    p.fill(Counting(), tmp_path / "full")
    assert names(tmp_path / "full") == WHOLE


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set cache_dir"):
        problem().fill(Counting(), tmp_path / "file" / "cache")
    with pytest.raises(ValueError, match="file is a file: set cache_dir"):
        check_cache_dir(tmp_path / "file" / "cache")


def test_a_read_only_place_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written: set cache_dir"):
        check_cache_dir(tmp_path / "caches" / "below")
    with pytest.raises(ValueError, match="cannot be written"):
        check_cache_dir(tmp_path)
    (tmp_path / "a cache").mkdir()
    check_cache_dir(tmp_path)  # it may be whole, and is then only read
    monkeypatch.undo()
    check_cache_dir(tmp_path / "caches" / "below")
