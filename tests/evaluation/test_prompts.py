from __future__ import annotations

import json
from pathlib import Path

import pytest

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
        ([], "at least one row"),
        (["Hi"], "row 0 .* must be an object, got str"),
        ([{"question": "Hi"}], r"must hold 'messages', or 'prompt'.*got the keys \['question'\]"),
        ([{"prompt": "Hi"}, {"messages": [ANSWER]}], "a prompt must have a turn to answer"),
        ([{"prompt": [{"role": "bot", "content": "Hi"}]}], "role must be one of"),
    ],
)
def test_malformed_rows_are_refused_with_the_file(
    tmp_path: Path, rows: list[object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"prompts.jsonl must hold prompts.*{message}"):
        load_prompts(write(tmp_path, *rows))


def test_files_that_are_not_there_or_no_json_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="must be in a .jsonl file.*got .*prompts.txt"):
        load_prompts(tmp_path / "prompts.txt")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "Hi"}\n{"prompt": \n')
    with pytest.raises(ValueError, match="broken.jsonl must hold prompts as JSON lines"):
        load_prompts(broken)


def test_a_prompt_given_in_memory_waits_for_its_answer_and_is_left_alone() -> None:
    turns = [USER, ANSWER]
    assert waiting("Hi") == waiting(turns) == [USER]
    assert turns == [USER, ANSWER]


def test_readable_prompts() -> None:
    assert readable([USER]) == "Hi"
    assert readable([SYSTEM, USER]) == "system: Be kind.\nuser: Hi"
