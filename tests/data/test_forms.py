"""Conversations in the forms in which people keep them."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.folding import folded, renders_system
from pact.data.template import BadConversation
from pact.evaluation.prompts import load_prompts
from tests.tiny import CHATML, tiny_tokenizer

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief"}
FORMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": [USER, ANSWER]}, [USER, ANSWER]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "GPT", "value": "Hello"}]},
        [USER, ANSWER],
    ),
    "sharegpt by role": ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
    "sharegpt, a turn not learnt": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello", "weight": 0},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
            ]
        },
        [USER, ANSWER | {"train": False}, USER, ANSWER],
    ),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ANSWER]),
    "alpaca with an input": (
        {"instruction": "Sum up", "input": "A tale", "output": "Hello"},
        [{"role": "user", "content": "Sum up\n\nA tale"}, ANSWER],
    ),
    "alpaca with a history": (
        {"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]]},
        [USER, ANSWER, USER, ANSWER],
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello"}, [USER, ANSWER]),
    "a system's column": (
        {"system": "Be brief", "instruction": "Hi", "output": "Hello"},
        [SYSTEM, USER, ANSWER],
    ),
    "a system's column of a prompt": (
        {"system": "Be brief", "prompt": "Hi", "completion": "Hello"},
        [SYSTEM, USER, ANSWER],
    ),
    "an empty system": ({"system": "", "messages": [USER, ANSWER]}, [USER, ANSWER]),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]},
                ANSWER,
            ]
        },
        [USER, ANSWER],
    ),
    "a prompt that is JSON": (
        {"prompt": '[{"a": 1}]', "completion": "Hello"},
        [{"role": "user", "content": '[{"a": 1}]'}, ANSWER],
    ),
    "texts that are the JSON of turns": (
        {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])},
        [
            {"role": "user", "content": json.dumps([USER])},
            {"role": "assistant", "content": json.dumps([ANSWER])},
        ],
    ),
    "a prompt that begins as JSON": (
        {"prompt": "[{x", "completion": "Hello"},
        [{"role": "user", "content": "[{x"}, ANSWER],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form(name: str) -> None:
    row, expected = FORMS[name]
    assert load_examples([row]) == [expected]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ROWS = [
    {"prompt": 'Say "a,b"\nand more', "completion": "007"},  # a text that looks like a number
    {"prompt": "Hi", "completion": "Hello"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("place", ["file", "folder"])
def test_every_kind_of_file(suffix: str, place: str, tmp_path: Path) -> None:
    if place == "folder" and suffix == ".csv":
        pytest.skip("`datasets` guesses the types of a folder's CSV columns")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / f"train{suffix}", ROWS)
    found = load_examples(folder / f"train{suffix}" if place == "file" else folder)
    assert [[m["content"] for m in turns] for turns in found] == [
        ['Say "a,b"\nand more', "007"],
        ["Hi", "Hello"],
    ]


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_csv_holds_lists_as_json(name: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, [{"chat": json.dumps([USER, ANSWER])}])
    source = path if place == "file" else tmp_path
    assert load_examples(source, columns={name: "chat"}) == [[USER, ANSWER]]
    with pytest.raises(ValueError, match="must hold a list of"):
        load_examples([{name: json.dumps([USER, ANSWER])}])


def test_texts_of_csv_stay_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": json.dumps([ANSWER])}]
    write(tmp_path / "a.csv", rows)
    assert load_examples(tmp_path / "a.csv")[0][1]["content"] == rows[0]["completion"]


def test_a_short_csv_leaves_the_limit_of_the_process(tmp_path: Path) -> None:
    """The module's limit holds for every reader of the process, also those of others."""
    write(tmp_path / "a.csv", [ROWS[0]])
    before = csv.field_size_limit()
    load_examples(tmp_path / "a.csv")
    assert csv.field_size_limit() == before


def test_empty_cells_of_csv_are_none(tmp_path: Path) -> None:
    whole = {"instruction": "Hi", "input": "", "output": "Hello", "system": "", "tools": ""}
    write(tmp_path / "a.csv", [whole])
    assert load_examples(tmp_path / "a.csv") == [[USER, ANSWER]]
    write(tmp_path / "a.csv", [whole, whole | {"output": ""}])
    with pytest.raises(ValueError, match="line 3 of .*a.csv: output must be a string, got None"):
        load_examples(tmp_path / "a.csv")
    write(tmp_path / "b.csv", [{"prompt": "Hi", "completion": ""}])
    with pytest.raises(ValueError, match="line 2 of .*b.csv .* where 'completion' is null"):
        load_examples(tmp_path / "b.csv")


def test_only_a_newline_ends_a_csv_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"  # line breaks to str.splitlines, not to CSV
    lines = ["prompt,completion", f"Hi,{text}", '"a\nb",x', "a,b,c"]
    path = tmp_path / "a.csv"
    path.write_text("\r\n".join(lines[:2]), encoding="utf-8", newline="")
    assert load_examples(path)[0][1]["content"] == text
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="line 5 of .* must have 2 values"):
        load_examples(path)


@pytest.mark.parametrize("other", ["b.csv", "b.parquet", "below/b.CSV", "train.csv"])
def test_a_folder_of_several_kinds_is_refused(other: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    for name in ("README.md", "dataset_infos.json", ".gitattributes", ".cache/b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert len(load_examples(tmp_path)) == 2
    (tmp_path / other).parent.mkdir(exist_ok=True)
    write(tmp_path / other, ROWS)
    with pytest.raises(ValueError, match=r"one kind, got .* and .* in .*: give one file, or a fo"):
        load_examples(tmp_path)


def test_json_of_both_kinds_is_one_kind(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "b.json", ROWS)
    assert len(load_examples(tmp_path)) == 4


def test_a_card_chooses_among_kinds(tmp_path: Path) -> None:
    write_snapshot(tmp_path, {"one": {"train": ROWS}})
    write(tmp_path / "notes.csv", ROWS)
    assert len(load_examples(tmp_path)) == 2
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold files of one kind, got .csv and .parquet"):
        load_examples(tmp_path)


def write_snapshot(folder: Path, rows: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Rows by subset and split, as the hub has them: a card that names them, a file for each."""
    for subset, splits in rows.items():
        (folder / subset).mkdir(parents=True)
        for split, part in splits.items():
            write(folder / subset / f"{split}.parquet", part)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {subset}\n  data_files:\n"
            + "".join(
                f"  - split: {split}\n    path: {subset}/{split}.parquet\n" for split in splits
            )
            for subset, splits in rows.items()
        )
        + "---\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize("load", [load_examples, load_prompts])
def test_a_snapshot_has_splits_and_subsets(load: Any, tmp_path: Path) -> None:
    rows = {
        subset: {
            split: [{"prompt": f"{subset} {split}", "completion": "Hello"}]
            for split in ("train", "test")
        }
        for subset in ("one", "two")
    }
    write_snapshot(tmp_path, rows)
    (turns,) = load(tmp_path, subset="two", split="test")
    assert turns[0]["content"] == "two test"
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], got split='other'"):
        load(tmp_path, subset="two", split="other")
    with pytest.raises(ValueError, match="cannot be read as a data set: .*'three' not found"):
        load(tmp_path, subset="three", split="test")


def test_columns_by_other_names() -> None:
    row = {"question": "Hi", "answer": "Hello", "output": "an image"}
    columns = {"instruction": "question", "output": "answer"}
    assert load_examples([row], columns=columns) == [[USER, ANSWER]]
    with pytest.raises(ValueError, match="row 0 .* lacks the column 'question'"):
        load_examples([{"answer": "Hello"}], columns=columns)
    with pytest.raises(ValueError, match="maps names of messages, .*, got 'question'"):
        load_examples([row], columns={"question": "instruction"})
    assert load_examples([{"answer": "x"}, row], columns=columns, skip_bad_rows=True)


def test_the_log_names_columns_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    row = {"messages": [USER, ANSWER], "instruction": "Bye", "output": "Gone", "tools": None}
    with caplog.at_level(logging.INFO):
        assert load_examples([row, row | {"id": 3, "gap": None}]) == [[USER, ANSWER]] * 2
    (record,) = caplog.records
    said = "the given list: nothing reads the columns id, instruction, output"
    assert record.getMessage() == said
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for row, _ in FORMS.values():
            load_examples([row])
    assert not caplog.records


def test_columns_of_another_form_than_the_rows_are_refused() -> None:
    row = {"messages": [USER, ANSWER], "question": "Bye", "answer": "Gone"}
    columns = {"instruction": "question", "output": "answer"}
    with pytest.raises(ValueError, match="read by its 'messages', got `columns` that map 'instru"):
        load_examples([row], columns=columns)
    with pytest.raises(ValueError, match="read by its 'messages', got `columns` that map 'prompt'"):
        load_prompts([row], columns={"prompt": "question"})
    assert load_examples([row | {"messages": None}], columns=columns)[0][0]["content"] == "Bye"
    chat = {"messages": [USER, ANSWER], "question": None, "answer": None}
    assert load_examples([chat], columns=columns) == [[USER, ANSWER]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "alien", "value": "x"}]}, "`from` must be one of .*'alien'"),
        ({"conversations": [{"from": "human"}]}, "must have `from` and `value`"),
        ({"conversations": ["Hi"]}, "message 0 must be an object"),
        ({"conversations": "Hi"}, "must hold a list of conversations' turns"),
        ({"instruction": 3, "output": "x"}, "instruction must be a string"),
        ({"instruction": "Hi", "output": None}, "output must be a string, got None"),
        ({"instruction": "Hi", "prompt": "Hi"}, "output must be a string, got None"),
        ({"instruction": "Hi", "output": []}, r"output must be a string, got \[\]"),
        ({"instruction": "Hi", "output": "x", "history": ["Hi"]}, "history must hold pairs"),
        ({"system": 3, "messages": [USER, ANSWER]}, "system must be a string"),
        ({"system": "x", "messages": [SYSTEM, USER, ANSWER]}, "a system turn and a column"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "parts must be texts, got one of type 'image'",
        ),
    ],
)
def test_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_examples([row])


def test_prompts_of_every_form() -> None:
    for name in ("sharegpt", "alpaca", "prompt and completion"):
        row, _ = FORMS[name]
        assert load_prompts([row]) == [[USER]]


def test_prompts_of_alpaca_need_no_output() -> None:
    row = {"instruction": "Hi", "history": [["Hi", "Hello"]], "system": "Be brief"}
    (prompt,) = load_prompts([row])
    assert [turn["role"] for turn in prompt] == ["system", "user", "assistant", "user"]
    with pytest.raises(ValueError, match="output must be a string, got 3"):
        load_prompts([{"instruction": "Hi", "output": 3}])


def test_prompts_in_columns_by_other_names() -> None:
    row, columns = {"goal": "Hi", "prompt": "an image"}, {"prompt": "goal"}
    assert load_prompts([row], columns=columns) == [[USER]]
    with pytest.raises(ValueError, match="row 0 .* lacks the column 'goal'"):
        load_prompts([{"prompt": "Hi"}], columns=columns)
    with pytest.raises(ValueError, match="maps names of messages, .*, got 'goal'"):
        load_prompts([row], columns={"goal": "prompt"})
    with pytest.raises(ValueError, match="a subset is of a data set's name or folder"):
        load_prompts([row], subset="one")


SILENT = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if message['role'] != 'system' %}",
).replace("{% endfor %}", "{% endif %}{% endfor %}")
RAISES = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}",
)


@pytest.mark.parametrize("template", [SILENT, RAISES], ids=["left out", "refused"])
def test_a_system_turn_is_folded_where_the_template_has_none(template: str) -> None:
    tokenizer, own = tiny_tokenizer(template), tiny_tokenizer()
    assert not renders_system(tokenizer) and renders_system(own)
    conversations = load_examples([{"messages": [SYSTEM, USER, ANSWER]}])
    (row,) = encode_examples(conversations, tokenizer, None, fold_system=True)
    text = tokenizer.decode(row["input_ids"])
    assert "user\nBe brief\n\nHi<|im_end|>" in text
    (row,) = encode_examples(conversations, own, None, fold_system=True)
    assert "system\nBe brief<|im_end|>" in own.decode(row["input_ids"])  # it has a place
    with pytest.raises(BadConversation, match="put into the user's turn behind it"):
        folded(load_examples([{"messages": [SYSTEM, ANSWER]}])[0])


def test_a_folder_whose_names_leave_a_file_out_is_refused(tmp_path: Path) -> None:
    """Where one name says a split, datasets reads no file whose name says none."""
    row = json.dumps({"prompt": "what", "completion": "this"})
    (tmp_path / "train.jsonl").write_text(row)
    (tmp_path / "other.jsonl").write_text(row)
    with pytest.raises(ValueError, match="other.jsonl and 0 more would be left out: name its sp"):
        load_examples(tmp_path, split="train")
    (tmp_path / "other.jsonl").rename(tmp_path / "test.jsonl")
    assert len(load_examples(tmp_path, split="train")) == 1
    assert len(load_examples(tmp_path, split="test")) == 1
