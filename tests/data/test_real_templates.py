"""What is learnt under the templates of published models: the answer from its first word, and the
token that ends a turn."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.spans import IGNORE, answer_rows
from pact.data.template import (
    BadConversation,
    encode,
    end_of_turn_ids,
    header_ids,
    prompt_text,
    with_template_defaults,
)
from pact.objective.config import DEFAULTS
from tests.data.real_templates import NAMES, runs, tokenizer_of
from tests.tiny import CHATML, tiny_tokenizer

OF_PARTS = ("idefics", "llava", "smolvlm")
"""Families whose templates read lists of parts, and drop or refuse a string."""

THINKING_BLOCKS = {  # what the template puts between the generation prompt and the first word
    "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "qwen3_training": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "gptoss": "<|start|>assistant<|channel|>final<|message|>",
    "glm4moe": "<|assistant|>\n<think></think>\n",
    "cohere2": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
}
ENDS = {
    "qwen3": "<|im_end|>",
    "qwen3_training": "<|im_end|>",
    "gptoss": "<|return|>",
    "glm4moe": "<|user|>",  # the template leaves it out behind the last turn
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",  # <|endoftext|> follows, once a conversation
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def test_there_are_templates_to_try() -> None:
    assert len(NAMES) >= 20 and set(ENDS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_learnt_from_its_first_word_to_its_end(name: str) -> None:
    tokenizer = tokenizer_of(name)
    turns = [user("Hi"), said("Sure, here.")]
    if name.startswith(OF_PARTS):
        with pytest.raises(BadConversation, match="must render|refuses"):
            encode(turns, tokenizer)
        return
    encoded = encode(turns, tokenizer)
    (run,) = runs(encoded, tokenizer)
    assert run.startswith("Sure, here.")
    end = run.removeprefix("Sure, here.")
    assert end == ENDS.get(name, end)
    last = [label for label in encoded.labels if label != IGNORE][-1]
    assert {last} == end_of_turn_ids(tokenizer)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(OF_PARTS)])
def test_every_turn_of_several_is_learnt(name: str) -> None:
    """Also where the template closes or opens the last turn otherwise than those before it."""
    tokenizer = tokenizer_of(name)
    turns = [user("Hi"), said("Sure."), user("More?"), said("No more.\n")]
    first, second = runs(encode(turns, tokenizer), tokenizer)
    assert first.startswith("Sure.") and second.startswith("No more.")
    control = set(tokenizer.added_tokens_decoder)
    for run in (first, second):
        assert tokenizer(run, add_special_tokens=False).input_ids[-1] in control


@pytest.mark.parametrize(("name", "header"), THINKING_BLOCKS.items())
def test_steps_count_from_the_first_word(name: str, header: str) -> None:
    """At the default kl_step_tau a row four steps on has 0.03 % of the first row's weight."""
    tokenizer = tokenizer_of(name)
    encoded = encode([user("Hi"), said("Sure, here.")], tokenizer)
    rows = answer_rows(torch.tensor([encoded.labels]))
    assert tokenizer.decode(header_ids(tokenizer)) == header
    position = int(rows.position[0])
    assert rows.step[0] == 0
    assert tokenizer.decode(encoded.input_ids[position + 1 :]).startswith("Sure")
    assert encoded.input_ids[: position + 1][-len(header_ids(tokenizer)) :] == header_ids(tokenizer)
    weight = torch.exp(rows.step / -DEFAULTS["vocabulary"].kl_step_tau)
    assert weight[0] / weight.sum() > 0.8  # a geometric sum with ratio exp(-2) leaves it 0.865


def test_a_generation_prompt_that_opens_a_thinking_block_is_understood() -> None:
    """The template drops the block from answers that are given."""
    tokenizer = tokenizer_of("deepseek_r1_distill")
    assert prompt_text("Hi", tokenizer).endswith("<｜Assistant｜><think>\n")
    encoded = encode([user("Hi"), said("Sure")], tokenizer)
    assert runs(encoded, tokenizer) == ["Sure<｜end▁of▁sentence｜>"]
    assert tokenizer.decode(header_ids(tokenizer)) == "<｜Assistant｜>"


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("qwen3", "let me see\n</think>\n\nSure<|im_end|>"),
        ("gptoss", "let me see<|end|><|start|>assistant<|channel|>final<|message|>Sure<|return|>"),
        ("glm4moe", "let me see</think>\nSure<|user|>"),
    ],
)
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_words(name: str, run: str, field: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = encode([user("Hi"), said("Sure", **{field: "let me see"})], tokenizer)
    assert runs(encoded, tokenizer) == [run]


def test_thoughts_within_the_content_are_the_same_words() -> None:
    tokenizer = tokenizer_of("qwen3")
    inline = encode([user("Hi"), said("<think>\nlet me see\n</think>\n\nSure")], tokenizer)
    apart = encode([user("Hi"), said("Sure", reasoning_content="let me see")], tokenizer)
    assert inline == apart


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("llama3_1", said("Sure", reasoning_content="let me see")),  # knows no thoughts
        ("deepseek_r1_distill", said("<think>let me see</think>Sure")),  # drops them
        ("llama3_1", said("I look.", tool_calls=[CALL])),  # renders the call alone
        ("gemma3", said("", tool_calls=[CALL])),  # knows no calls
        ("phi3", said("", tool_calls=[CALL])),
    ],
)
def test_what_the_template_leaves_out_is_refused(name: str, answer: dict[str, Any]) -> None:
    with pytest.raises(BadConversation, match=r"leaves out the .* of message 1: take it out"):
        encode([user("Hi"), answer], tokenizer_of(name))


def test_thoughts_that_later_turns_drop_are_refused_unless_they_are_not_learnt() -> None:
    tokenizer = tokenizer_of("qwen3")
    turns = [
        user("Hi"),
        said("Sure", reasoning_content="so"),
        user("More?"),
        said("Yes", reasoning_content="hm"),
    ]
    with pytest.raises(BadConversation, match="reasoning_content so of message 1: the template re"):
        encode(turns, tokenizer)
    turns[1]["train"] = False
    assert runs(encode(turns, tokenizer), tokenizer) == ["hm\n</think>\n\nYes<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "qwen3",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
            "<|im_end|>",
        ),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>'),
        (
            "gptoss",
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        ),
    ],
)
def test_tool_calls_are_words_and_answers_of_tools_are_not(name: str, call: str) -> None:
    tokenizer = tokenizer_of(name)
    turns = [
        user("Hi"),
        said("", tool_calls=[CALL]),
        {"role": "tool", "name": "weather", "content": "sunny"},
        said("It is sunny."),
    ]
    found = runs(encode(Conversation(turns, tools=TOOLS), tokenizer), tokenizer)
    assert found == [call, "It is sunny." + ENDS[name]]
    last = runs(encode(Conversation(turns[:2], tools=TOOLS), tokenizer), tokenizer)
    assert last == [call]


def test_tools_that_the_template_does_not_read_are_refused() -> None:
    turns = Conversation([user("Hi"), said("Sure")], tools=TOOLS)
    with pytest.raises(BadConversation, match="must read the conversation's tools"):
        encode(turns, tokenizer_of("phi3"))


def test_variables_of_the_template_are_defaults_that_travel(tmp_path: Any) -> None:
    tokenizer = tokenizer_of("qwen3")
    silent = with_template_defaults(tokenizer, {"enable_thinking": False})
    block = "<think>\n\n</think>\n\n"
    assert not prompt_text("Hi", tokenizer).endswith(block)
    assert prompt_text("Hi", silent) == prompt_text("Hi", tokenizer) + block
    asked = silent.apply_chat_template([user("Hi")], tokenize=False, add_generation_prompt=True)
    assert asked.endswith(block)
    again = silent.apply_chat_template(
        [user("Hi")], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert again == prompt_text("Hi", tokenizer)
    silent.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert prompt_text("Hi", loaded) == prompt_text("Hi", silent)
    turns = [user("Hi"), said("Sure")]
    assert encode(turns, silent) == encode(turns, tokenizer)
    assert with_template_defaults(tokenizer, None) is tokenizer


def test_variables_can_be_given_wherever_a_template_is_used() -> None:
    tokenizer, kwargs = tokenizer_of("gptoss"), {"reasoning_effort": "high"}
    turns = [user("Hi"), said("Sure")]
    changed = with_template_defaults(tokenizer, kwargs)
    encoded = encode(turns, tokenizer, chat_template_kwargs=kwargs)
    assert encoded == encode(turns, changed) != encode(turns, tokenizer)
    (row,) = encode_examples([turns], tokenizer, None, chat_template_kwargs=kwargs)
    assert row["input_ids"] == encoded.input_ids
    assert prompt_text("Hi", tokenizer, kwargs) == prompt_text("Hi", changed)
    thinks = tokenizer_of("qwen3")
    assert header_ids(thinks, {"enable_thinking": False}) == header_ids(thinks)


def test_a_conversations_own_variables_come_first() -> None:
    tokenizer = with_template_defaults(tokenizer_of("gptoss"), {"reasoning_effort": "low"})
    turns = [user("Hi"), said("Sure")]
    own = Conversation(turns, template_kwargs={"reasoning_effort": "high"})
    texts = [tokenizer.decode(encode(t, tokenizer).input_ids) for t in (turns, own)]
    assert "Reasoning: low" in texts[0] and "Reasoning: high" in texts[1]
    with pytest.raises(BadConversation, match="'enable_thinking', which it does not"):
        encode(Conversation(turns, template_kwargs={"enable_thinking": False}), tokenizer)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"enable_thinkng": False}, "reads, got 'enable_thinkng', which it does not"),
        ({"messages": []}, "must name variables of the chat template, got 'messages'"),
        ({"add_generation_prompt": True}, "got 'add_generation_prompt'"),
        ({"enable_thinking": float("nan")}, "must be JSON values, got nan"),
        ({"enable_thinking": object()}, "must be JSON values"),
    ],
)
def test_variables_that_would_have_no_effect_are_refused(
    kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_template_defaults(tokenizer_of("qwen3"), kwargs)


def test_values_reach_the_template_as_they_are() -> None:
    values = [None, True, 3, 0.5, 'a "quoted" \\ {% é 😀\n', ["x", {"k": [1, None]}]]
    for value in values:
        tokenizer = tiny_tokenizer("{{ extra | tojson }}" + CHATML)
        changed = with_template_defaults(tokenizer, {"extra": value})
        given = tokenizer.apply_chat_template([user("Hi")], tokenize=False, extra=value)
        assert changed.apply_chat_template([user("Hi")], tokenize=False) == given


def test_what_is_put_behind_a_last_turn_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode_examples([[user("Hi"), said("Sure")]] * 3, tokenizer_of("glm4moe"), None)
    assert caplog.text.count("does not close the last answer") == 1
