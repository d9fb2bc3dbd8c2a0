from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from pact.evaluation.prompts import load_prompts, readable, waiting

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
ANSWER = {"role": "assistant", "content": "Hello"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_what_comes_before_the_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "Hi", "category": "other keys are left out"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [SYSTEM, USER]},
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [USER]},
        {"messages": [USER, ANSWER, USER, ANSWER]},
    )
    expected = [[USER], [USER], [SYSTEM, USER], [SYSTEM, USER], [USER], [USER, ANSWER, USER]]
    assert load_prompts(path) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row, got none in .*prompts.jsonl"),
        (["Hi"], "line 1 of .*prompts.jsonl must be an object, got str"),
        ([{"question": "Hi"}], r"must hold 'messages', .*got the keys \['question'\]"),
        ([{"prompt": None}], r"got the keys \['prompt'\], where 'prompt' is null"),
        (
            [{"prompt": "Hi"}, {"messages": [ANSWER]}],
            "line 2 of .*prompts.jsonl: a prompt must have a turn to answer",
        ),
        ([{"prompt": [{"role": "bot", "content": "Hi"}]}], "line 1 of .* role must be one of"),
    ],
)
def test_malformed_rows_are_refused_with_the_line(
    tmp_path: Path, rows: list[object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_prompts(write(tmp_path, *rows))


def test_files_that_are_not_there_or_no_json_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_prompts(tmp_path / "none.jsonl")
    (tmp_path / "prompts.txt").write_text("Hi")
    with pytest.raises(ValueError, match="must end in .*got .*prompts.txt"):
        load_prompts(tmp_path / "prompts.txt")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "Hi"}\n\n{"prompt": \n')
    with pytest.raises(ValueError, match="broken.jsonl, line 3: every line must be one JSON"):
        load_prompts(broken)
    assert load_prompts(broken, skip_bad_rows=True) == [[USER]]


def test_a_newline_alone_ends_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_prompts(path)[0][0]["content"] == text


def test_every_source_of_conversations_is_one_of_prompts(tmp_path: Path) -> None:
    parts = DatasetDict({name: Dataset.from_list([{"prompt": name}]) for name in ("train", "test")})
    parts.save_to_disk(tmp_path / "parts")
    assert load_prompts(tmp_path / "parts", split="test")[0][0]["content"] == "test"
    with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\], got split=None"):
        load_prompts(tmp_path / "parts")


def test_a_prompt_given_in_memory_waits_for_its_answer_and_is_left_alone() -> None:
    turns = [USER, ANSWER]
    assert waiting("Hi") == waiting(turns) == [USER]
    assert turns == [USER, ANSWER]


def test_readable_prompts() -> None:
    assert readable([USER]) == "Hi"
    assert readable([SYSTEM, USER]) == "system: Be kind.\nuser: Hi"
    assert readable([{"role": "system", "content": ""}, USER]) == "Hi"
