"""Conversations in the forms in which people keep them."""

from __future__ import annotations

import csv
import json
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
    "lists as CSV has them": ({"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
    "a prompt that is JSON": (
        {"prompt": '[{"a": 1}]', "completion": "Hello"},
        [{"role": "user", "content": '[{"a": 1}]'}, ANSWER],
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


def test_a_snapshot_has_splits_and_subsets(tmp_path: Path) -> None:
    """As the hub's: a card that names them, and a file for each."""
    for subset in ("one", "two"):
        (tmp_path / subset).mkdir()
        for split in ("train", "test"):
            rows = [{"prompt": f"{subset} {split}", "completion": "Hello"}]
            write(tmp_path / subset / f"{split}.parquet", rows)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {subset}\n  data_files:\n"
            + "".join(
                f"  - split: {split}\n    path: {subset}/{split}.parquet\n"
                for split in ("train", "test")
            )
            for subset in ("one", "two")
        )
        + "---\n",
        encoding="utf-8",
    )
    ((asked, _),) = load_examples(tmp_path, subset="two", split="test")
    assert asked["content"] == "two test"
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], got split='other'"):
        load_examples(tmp_path, subset="two", split="other")
    with pytest.raises(ValueError, match="cannot be read as a data set: .*'three' not found"):
        load_examples(tmp_path, subset="three")


def test_columns_by_other_names() -> None:
    row = {"question": "Hi", "answer": "Hello", "output": "an image"}
    columns = {"instruction": "question", "output": "answer"}
    assert load_examples([row], columns=columns) == [[USER, ANSWER]]
    with pytest.raises(ValueError, match="row 0 .* lacks the column 'question'"):
        load_examples([{"answer": "Hello"}], columns=columns)
    with pytest.raises(ValueError, match="maps names of messages, .*, got 'question'"):
        load_examples([row], columns={"question": "instruction"})
    assert load_examples([{"answer": "x"}, row], columns=columns, skip_bad_rows=True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "alien", "value": "x"}]}, "`from` must be one of .*'alien'"),
        ({"conversations": [{"from": "human"}]}, "must have `from` and `value`"),
        ({"conversations": ["Hi"]}, "message 0 must be an object"),
        ({"conversations": "Hi"}, "must hold a list of conversations' turns"),
        ({"instruction": 3, "output": "x"}, "instruction must be a string"),
        ({"instruction": "Hi", "output": None}, "output must be a string, got None"),
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
