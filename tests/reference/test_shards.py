"""A shard is read where it stands only if it is whole, unchanged and of its own examples."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from pact.common.disk import digest
from pact.reference import CachedReference, ReferenceCache
from pact.reference.shards import NOTE_BYTES
from tests.reference.problem import Counting, problem


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("pact.reference.shards.SHARD_EXAMPLES", 4)


def files(folder, number):
    return [folder / f"shard-{number:05d}.{kind}" for kind in ("arrow", "json")]


def swap(folder):
    """The first two shards in each other's place, each with its checksum."""
    for one, other in zip(files(folder, 0), files(folder, 1), strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def agree(folder):
    """The checksum of what the second shard's file holds now."""
    path, note = files(folder, 1)
    facts = json.loads(note.read_text())
    note.write_text(json.dumps(facts | {"bytes": path.stat().st_size, "xxh3_128": digest(path)}))


def change_facts(**facts):
    def change(folder):
        note = files(folder, 1)[1]
        note.write_text(json.dumps(json.loads(note.read_text()) | facts))

    return change


def write_note(text):
    return lambda folder: files(folder, 1)[1].write_text(text)


def cut(share):
    """Truncated, with a checksum of what is left."""

    def change(folder):
        path = files(folder, 1)[0]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        agree(folder)

    return change


def other_table(change):
    """Another table in the file, with its checksum."""

    def write(folder):
        path = files(folder, 1)[0]
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_stream(file).read_all()
            table = change(table)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        path.write_bytes(sink.getvalue())
        agree(folder)

    return write


def with_rows(table, rows):
    field = table.field("full")
    return table.set_column(1, field, pa.chunked_array([pa.array(rows, field.type)]))


def shorter_rows(table):
    """Every example a value short, so that rows would be read from the next one's place."""
    rows = [row[:-1] for row in table["full"].to_pylist()]
    return table.set_column(
        1, table.field(1), pa.chunked_array([pa.array(rows, table.field(1).type)])
    )


def with_null(table):
    rows = [None, *table["full"].to_pylist()[1:]]
    return table.set_column(
        1, table.field(1), pa.chunked_array([pa.array(rows, table.field(1).type)])
    )


def in_two(table):
    return pa.concat_tables([table.slice(0, 2), table.slice(2)])


DAMAGE = {
    "of the first version": write_note('{"xxh3_128": "0", "bytes": 1}'),
    "another version": change_facts(format=1),
    "other examples": change_facts(examples="00"),
    "another number of tokens": change_facts(safety_tokens=2**62),
    "a negative size": change_facts(bytes=-1),
    "a list": write_note("[1]"),
    "nested": write_note("[" * 2000),
    "huge": write_note('{"a": "' + "b" * NOTE_BYTES + '"}'),
    "half of it": cut(0.5),
    "none of it": cut(0.0),
    "shorter rows": other_table(shorter_rows),
    "a null": other_table(with_null),
    "two pieces": other_table(in_two),
    "another type": other_table(lambda t: t.drop_columns("post")),
    "other lines": other_table(lambda t: t.take([1, 0, 2, 3])),
}


def test_shards_in_each_others_place_are_refused_and_filled_anew(tmp_path):
    p = problem()
    cache = p.fill(Counting(), tmp_path)
    expected = cache.table.to_dict()
    swap(tmp_path)
    with pytest.raises(ValueError, match="shard-00000.arrow is missing or damaged"):
        CachedReference(ReferenceCache(tmp_path, cache.layout, cache.over))
    counting = Counting()
    anew = p.fill(counting, tmp_path, max_tokens=1).table.to_dict()
    assert counting.calls == 8
    assert anew.keys() == expected.keys() and anew["example"] == expected["example"]
    for name in anew.keys() - {"example"}:  # passes of other sizes may round otherwise, by an ulp
        for row, wanted in zip(anew[name], expected[name], strict=True):
            assert row == pytest.approx(wanted, rel=2**-10, abs=2**-10)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_shard_that_is_not_what_it_should_be_is_filled_anew(tmp_path, damage):
    p = problem()
    cache = p.fill(Counting(), tmp_path)
    expected = cache.table.to_dict()
    damage(tmp_path)
    with pytest.raises(ValueError, match="shard-00001.arrow is missing or damaged"):
        CachedReference(ReferenceCache(tmp_path, cache.layout, cache.over))
    counting = Counting()
    assert p.fill(counting, tmp_path, max_tokens=1).table.to_dict() == expected
    assert counting.calls == 4


def test_a_file_has_its_name_only_once_the_disk_has_it(tmp_path, monkeypatch):
    """A power cut leaves no valid name with an empty file."""
    flushed, renamed = set(), []
    fsync, replace = os.fsync, Path.replace

    def record(handle):
        flushed.add(os.fstat(handle).st_ino)
        fsync(handle)

    def checked(path, target):
        renamed.append(target.name)
        assert path.stat().st_ino in flushed, target
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "replace", checked)
    problem().fill(Counting(), tmp_path)
    shards = [f"shard-0000{n}.{kind}" for n in range(3) for kind in ("arrow", "json")]
    assert renamed == ["meta.json", *shards]
    assert tmp_path.stat().st_ino in flushed
