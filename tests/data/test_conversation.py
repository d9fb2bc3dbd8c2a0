"""What the fields of rows and messages do, and which are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from pact.data.conversation import Conversation, is_trained, like
from pact.data.examples import load_examples

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "1"}


def said(text: str = "Sure", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def loaded(*messages: Any, **row: Any) -> Conversation:
    return load_examples([{"messages": list(messages), **row}])[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"training": False},
        {"weight": 0, "train": False},
    ],
)
def test_turns_are_taken_out_of_what_is_learnt(fields: dict[str, Any]) -> None:
    first, answer, _, last = loaded(USER, said(**fields), USER, said())
    assert answer == said(train=False)
    assert [is_trained(message) for message in (first, answer, last)] == [False, False, True]


@pytest.mark.parametrize(
    "fields", [{"weight": 1}, {"weight": 1.0}, {"train": True}, {"training": None, "weight": None}]
)
def test_turns_that_say_so_are_learnt(fields: dict[str, Any]) -> None:
    assert loaded(USER, said(**fields)) == [USER, said()]


def test_turns_of_a_prompt_are_not_learnt() -> None:
    """TRL learns the completion alone."""
    row = {"prompt": [USER, said("one"), USER], "completion": [said("two"), USER, said("three")]}
    (conversation,) = load_examples([row])
    assert [m["content"] for m in conversation if is_trained(m)] == ["two", "three"]
    assert conversation[1] == said("one", train=False)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept(name: str) -> None:
    assert loaded(USER, said(**{name: "hm"})) == [USER, said(**{name: "hm"})]
    assert loaded(USER, said(**{name: " \n"})) == [USER, said()]


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_calls_and_their_answers_are_kept(content: dict[str, Any]) -> None:
    call = {"role": "assistant", "tool_calls": [CALL], **content}
    expected = [USER, said("", tool_calls=[CALL]), TOOL, said()]
    assert loaded(USER, call, TOOL, said()) == expected


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_template_variables_go_with_the_conversation(as_text: bool) -> None:
    tools, kwargs = [{"type": "function"}], {"enable_thinking": False}
    row = {"tools": tools, "chat_template_kwargs": kwargs}
    given = {name: json.dumps(value) for name, value in row.items()} if as_text else row
    conversation = loaded(USER, said(), **given)
    for found in (conversation, like(conversation, conversation[:1])):
        assert (found.tools, found.template_kwargs) == (tools, kwargs)
    assert like([USER], [USER]).tools is None


def test_what_arrow_fills_in_is_no_field() -> None:
    """Rows of one column share their fields: those that a row lacks are None."""
    other = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": [USER, said(weight=0), USER, said()]},
        {"messages": [USER, said(tool_calls=[CALL])]},
        {"messages": [USER, said(tool_calls=[other], reasoning_content="hm")]},
    ]
    found = load_examples(Dataset.from_list(rows))
    assert found == [
        [USER, said(train=False), USER, said()],
        [USER, said(tool_calls=[CALL])],
        [USER, said(tool_calls=[other], reasoning_content="hm")],
    ]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (said(weight=0.5), "message 1: weight must be 0 or 1, .* got 0.5"),
        (said(train="no"), "message 1: train must be 0 or 1, .* got 'no'"),
        (said(weight=1, train=False), "weight and train contradict each other"),
        ({**USER, "train": True}, "the assistant's turns alone are learnt"),
        (
            said(function_call={"name": "f"}),
            "'function_call' cannot be followed: write the call as",
        ),
        (said("", refusal="No."), "'refusal' cannot be followed: put the refusal's words"),
        (said(images=["a.png"]), "'images' cannot be followed: text alone"),
        (said(train_detail=[{"train": False}]), "'train_detail' cannot be followed"),
        (said(prefix=True), "'prefix' cannot be followed: give the whole answer"),
        (said(tool_calls="f()"), "tool_calls must be a list"),
        (said(tool_calls=[{"function": {}}]), "a tool call must be an object with function.name"),
        (said(reasoning_content=["hm"]), "reasoning_content must be a string"),
        (said(reasoning_content="a", thinking="b"), "reasoning_content and thinking: leave one"),
        (TOOL, "or 'tool' after an assistant's tool_calls, got 'tool'"),
        (said(None), "content must be a string, got None"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_row(message: Any, error: str) -> None:
    rows = [{"messages": [USER, said()]}, {"messages": [USER, message, USER, said()]}]
    with pytest.raises(ValueError, match=error) as caught:
        load_examples(rows)
    assert "row 1 of the given list, message 1: " in str(caught.value)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"images": ["a.png"]}, "'images' cannot be followed"),
        ({"tools": 3}, "tools must be a list, got 3"),
        ({"tools": "{"}, "tools must be JSON"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
    ],
)
def test_fields_of_a_row_are_refused(row: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        loaded(USER, said(), **row)


def test_fields_that_nothing_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert loaded({**USER, "name": "Ann"}, said(id=7), images=[]) == [USER, said()]
    assert "nothing reads the messages' id, name" in caplog.text


def test_bad_rows_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": [USER, said(str(n))]}) for n in range(2)]
    path.write_text("\n".join([lines[0], "", "{", '{"messages": 3}', lines[1]]))
    with pytest.raises(ValueError, match="chats.jsonl, line 3: every line must be one JSON"):
        load_examples(path)
    with caplog.at_level(logging.WARNING):
        found = load_examples(path, skip_bad_rows=True)
    assert [turns[1]["content"] for turns in found] == ["0", "1"]
    assert [turns.where for turns in found] == [f"line 1 of {path}", f"line 5 of {path}"]
    assert f"left out 2 of 4 rows of {path}" in caplog.text and "line 4 of" in caplog.text
    path.write_text("{")
    with pytest.raises(ValueError, match="every row of .* is bad; the first: .*line 1"):
        load_examples(path, skip_bad_rows=True)
