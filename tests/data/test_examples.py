"""Every source of conversations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from pact.data import sources
from pact.data.examples import load_examples
from pact.data.jsonl import parse_json

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROWS = [{"messages": MESSAGES}, {"messages": [{"role": "system", "content": "x"}, *MESSAGES]}]
EXPECTED = [row["messages"] for row in ROWS]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row) for row in ROWS) + "\n"  # a blank line is no row
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    parts = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    parts.save_to_disk(tmp_path / "parts")
    sources = [
        written(tmp_path / "a.jsonl", lines),
        str(
            written(tmp_path / "b.jsonl", "\ufeff" + lines)
        ),  # a byte-order mark, as Windows writes it
        written(tmp_path / "c.json", json.dumps(ROWS, indent=1)),
        tmp_path / "one",
        tmp_path / "parts",
        Dataset.from_list(ROWS),
        parts,
        ROWS,
    ]
    for source in sources:
        assert load_examples(source) == EXPECTED, source
    assert load_examples(tmp_path / "parts", split="test") == EXPECTED[:1]
    for split in ("dev", None):
        with pytest.raises(
            ValueError, match=r"splits \['test', 'train'\], got split=" + repr(split)
        ):
            load_examples(tmp_path / "parts", split=split)
    assert load_examples(DatasetDict({"test": parts["test"]}), split=None) == EXPECTED[:1]


def test_only_a_newline_ends_a_json_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"  # line breaks to str.splitlines, plain characters to JSON
    row = {"prompt": "Hi", "completion": text}
    path = written(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\r\n")
    assert load_examples(path)[0][1]["content"] == text


def test_a_name_goes_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, subset: str | None, split: str) -> Dataset:
        asked.append((name, subset, split))
        if name == "gone":
            raise FileNotFoundError("no such data set")
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(sources, "load_dataset", load)
    monkeypatch.setattr(sources, "check_on_hub", lambda *_: None)
    assert load_examples("owner/name", split="train_sft") == EXPECTED
    assert load_examples("owner/name", subset="main") == EXPECTED
    assert asked == [("owner/name", None, "train_sft"), ("owner/name", "main", "train")]
    with pytest.raises(ValueError, match="gone is neither a file.*no such data set"):
        load_examples("gone")
    parts = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    monkeypatch.setattr(sources, "load_dataset", lambda name, subset, split: parts)
    with pytest.raises(ValueError, match=r"owner/name has the splits \['test', 'train'\]"):
        load_examples("owner/name", split=None)


def test_a_name_that_is_nowhere_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(self: Any, name: str, **options: Any) -> None:
        asked.append(name)
        raise ConnectionError("no such place")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", ask)
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: pytest.fail("looked up again"))
    with pytest.raises(ValueError, match="dataset 'nobody/nothing' is neither .*asked once .no su"):
        load_examples("nobody/nothing")
    assert asked == ["nobody/nothing"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": "Hi", "completion": MESSAGES[1:], "messages": None},  # a missing Arrow column
        {"messages": [{**message, "name": "x"} for message in MESSAGES], "id": 3},
    ],
)
def test_forms_of_a_row(row: dict[str, Any]) -> None:
    assert load_examples([row]) == [MESSAGES]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least one row, got none in the given list"),
        (
            [{"text": "Hi"}],
            r"row 0 of the given list must hold 'messages'.*got the keys \['text'\]",
        ),
        ([{"prompt": "Hi"}], "must hold 'messages', 'conversations', 'prompt' and 'compl"),
        (
            [{"prompt": None, "completion": "Hello"}],
            r"got the keys \['completion', 'prompt'\], where 'prompt' is null",
        ),
        ([ROWS[0], "Hi"], "row 1 of the given list must be an object, got str"),
        ([{"messages": []}], "must hold a list of messages"),
        ([{"messages": "Hi"}], "must hold a list of messages, got 'Hi'"),
        (
            [{"messages": [{"role": "user"}]}],
            "row 0 of .*, message 0 must have a role and a content",
        ),
        ([{"messages": [{"role": "tool", "content": "x"}]}], "role must be one of .*got 'tool'"),
        ([{"messages": [{"role": "user", "content": None}]}], "content must be a string, got None"),
        ([{"messages": MESSAGES[:1]}], "no assistant turn in the data: none of the 1 rows"),
        (3, "a Dataset or a list of dicts, got int"),
        ("no/such/data.jsonl", "data file no/such/data.jsonl does not exist"),
        ("./nowhere", "neither a file nor a folder"),
        (Path("nowhere"), "neither a file nor a folder"),
        ("~nosuchuser/data.jsonl", "got ~nosuchuser/data.jsonl .*: write the folder out"),
    ],
)
def test_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            json.dumps(ROWS[0]) + '\n{"messages": [\n',
            "line 2: every line must be one JSON",
        ),
        (
            "a.jsonl",
            json.dumps(ROWS[0]) + '\n\n{"messages": null}\n',
            r"line 3 of .*a.jsonl must hold .* where 'messages' is null",
        ),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: JSON must not be nested deeper"),
        (
            "a.jsonl",
            "[" * 101 + "]" * 101,
            "line 1: JSON must not be nested deeper than 100 levels",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "completion": "b", "prompt": "c"}',
            "a.jsonl, line 1: an object must have each name once, got 'prompt' twice",
        ),
        (
            "a.jsonl",
            '{"prompt": "\\ud800", "completion": "x"}',
            "a.jsonl, line 1: text must be Unicode characters",
        ),
        ("a.json", "[" * 100_000, "a.json: a .json file must be one array.*nested deeper"),
        ("a.jsonl", "\n", "at least one row, got none"),
        ("a.json", "[\n{},\n{,]", "line 3: a .json file must be one array"),
        (
            "a.json",
            '{"messages": []}',
            r"must hold one array of rows, got a dict: wrap it in \[...\]",
        ),
        ("a.csv", "prompt,completion", "at least one row, got none"),
        ("a.csv", "prompt,prompt\na,b", "must begin with a line of different names"),
        ("a.csv", "prompt,completion\na,b,c", "line 2 of .*a.csv must have 2 values"),
        ("a.csv", 'prompt,completion\na,"b', "a.csv, line 2: not CSV"),
        ("a.parquet", "PAR1", "a.parquet is not a whole Parquet file"),
        ("a.txt", "Hi", "must end in .jsonl, .json, .csv, .parquet"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(written(tmp_path / name, text))


def test_refused_bytes_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        load_examples(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        load_examples(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold a data set: one written by"):
        load_examples(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text"), [("state.json", "{"), ("state.json", "{}"), ("dataset_info.json", "[]")]
)
def test_a_saved_data_set_that_is_damaged_is_refused(tmp_path: Path, name: str, text: str) -> None:
    saved = tmp_path / "saved"
    Dataset.from_list(ROWS[:1]).save_to_disk(saved)
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match="saved cannot be read as a saved data set"):
        load_examples(saved)


def test_nesting_that_is_read_is_counted_by_level() -> None:
    levels = "[" * 100 + "]" * 100
    assert parse_json(levels)
    assert parse_json(f"[{'[],' * 1000}[]]")  # many, and not deep
    with pytest.raises(ValueError, match="deeper than 100"):
        parse_json(f'{{"a": {levels}}}')
