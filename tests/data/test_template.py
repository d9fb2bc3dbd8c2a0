"""What is labelled under chat templates of every shape, token by token."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.data.template import BadConversation, encode, header_ids, prompt_text
from tests.tiny import CHATML, tiny_tokenizer

GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
DROPS_THINKING = (  # as reasoning models do: only the last turn keeps what stands before </think>
    "{% for message in messages %}{% set text = message['content'] %}"
    "{% if not loop.last %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_CONTROL_TOKEN = (  # the end of a turn is plain whitespace, and must be learnt
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ALTERNATING = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    + CHATML
)


def chat(*contents: str, system: str | None = None) -> Conversation:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def labelled(conversation: Conversation, tokenizer: Any, **options: Any) -> list[str]:
    """The text of every maximal run of labelled tokens."""
    runs: list[list[int]] = []
    encoded = encode(conversation, tokenizer, **options)
    previous = False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, -100)
        if label != -100:
            runs = [*runs[:-1], [*runs[-1], token]] if previous else [*runs, [token]]
        previous = label != -100
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, GENERATION, DEFAULT_SYSTEM])
def test_answers_and_their_ends_are_labelled(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    conversation = chat("Hi", "Sure, here.", "More?", "", "Go on", "Bread\n\n", system="Be kind.")
    runs = labelled(conversation, tokenizer)
    assert runs == ["Sure, here.<|im_end|>", "<|im_end|>", "Bread\n\n<|im_end|>"]


def test_ids_are_those_of_the_rendered_text() -> None:
    tokenizer = tiny_tokenizer(DEFAULT_SYSTEM)
    conversation = chat("Hi", "Sure, here.")
    encoded = encode(conversation, tokenizer)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert encoded.input_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert text.startswith("<|im_start|>system\nBe good.")


def test_labels_by_hand() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(chat("a", "The"), tokenizer)
    start, end, newline = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "Ċ"])
    the, a = tokenizer.convert_tokens_to_ids(["The", "a"])
    user = tokenizer("user").input_ids
    assistant = tokenizer("assistant").input_ids
    head = [start, *user, newline, a, end, newline, start, *assistant, newline]
    assert encoded.input_ids == [*head, the, end, newline]
    assert encoded.labels == [-100] * len(head) + [the, end, -100]


def test_a_character_of_several_tokens_is_labelled_whole() -> None:
    assert labelled(chat("é", "café ☕"), tiny_tokenizer()) == ["café ☕<|im_end|>"]


def test_a_turn_that_ends_in_plain_whitespace_keeps_it() -> None:
    runs = labelled(chat("Hi", "Sure", "And", "No"), tiny_tokenizer(NO_CONTROL_TOKEN))
    assert runs == ["Sure\n\n", "No\n\n"]


@pytest.mark.parametrize("answer", ["that", " that", "\n\nthat"])
@pytest.mark.parametrize("template", [NO_CONTROL_TOKEN, CHATML])
def test_an_answer_begins_where_generation_does(answer: str, template: str) -> None:
    """Also where the tokenizer would merge the header's last character with the answer's first."""
    tokenizer = tiny_tokenizer(template)
    conversation = chat("Hi", answer)
    encoded = encode(conversation, tokenizer)
    prompt = tokenizer(prompt_text("Hi", tokenizer), add_special_tokens=False).input_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    assert prompt[-len(header_ids(tokenizer)) :] == header_ids(tokenizer)
    first = next(n for n, label in enumerate(encoded.labels) if label != -100)
    assert first == len(prompt)
    (run,) = labelled(conversation, tokenizer)
    assert run.startswith(answer)


def test_a_conversation_without_an_answer_has_no_label() -> None:
    assert labelled(chat("Hi"), tiny_tokenizer()) == []
    assert labelled(chat("Hi"), tiny_tokenizer(GENERATION)) == []


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_truncation_cuts_inside_the_answer(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    whole = encode(chat("Hi", "Sure, here."), tokenizer)
    first = next(n for n, label in enumerate(whole.labels) if label != -100)
    cut = encode(chat("Hi", "Sure, here."), tokenizer, max_length=first + 2)
    assert cut == (whole.input_ids[: first + 2], whole.labels[: first + 2])
    assert cut.labels[-2:] == whole.input_ids[first : first + 2]
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        encode(chat("Hi", "Sure"), tokenizer, max_length=0)


OUTSIDE = (  # the token that ends a turn stands outside the block, behind a line break
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '\n<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_ALONE = (  # a template may say that earlier answers are not learnt
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (  # reads a list of parts: of a string nothing is rendered
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% for part in m['content'] if part is mapping %}{{ part['text'] }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_end_of_a_turn_is_learnt_where_the_blocks_leave_it_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = tiny_tokenizer(OUTSIDE)
    conversation = chat("Hi", "Sure", "More", "No")
    with caplog.at_level(logging.WARNING):
        assert labelled(conversation, tokenizer) == ["Sure\n<|im_end|>", "No\n<|im_end|>"]
    assert caplog.text.count("leave out the token that ends a turn") == 1


def test_blocks_say_which_turns_are_learnt() -> None:
    runs = labelled(chat("Hi", "Sure", "More", "No"), tiny_tokenizer(LAST_ALONE))
    assert runs == ["No<|im_end|>"]


@pytest.mark.parametrize("blocks", ["", "{% generation %}{% endgeneration %}"])
def test_an_answer_that_is_not_rendered_is_refused(blocks: str) -> None:
    tokenizer = tiny_tokenizer(PARTS + blocks)
    with pytest.raises(BadConversation, match="leaves out the content Sure of message 1"):
        encode(chat("Hi", "Sure"), tokenizer)
    assert labelled(chat("Hi", ""), tiny_tokenizer(PARTS)) == ["<|im_end|>"]
    with pytest.raises(ValueError, match="conversation 1: the chat template must render all"):
        encode_examples([chat("Hi", ""), chat("Hi", "Sure")], tokenizer, None)


def test_a_turn_of_the_system_that_is_not_rendered_is_refused() -> None:
    template = "{% set messages = messages | rejectattr('role', 'eq', 'system') | list %}" + CHATML
    assert labelled(chat("Hi", "Sure"), tiny_tokenizer(template)) == ["Sure<|im_end|>"]
    with pytest.raises(BadConversation, match="leaves out the content of message 0, of 'system'"):
        encode(chat("Hi", "Sure", system="Be kind."), tiny_tokenizer(template))


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_turns_that_are_not_learnt_are_read(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    conversation = chat("Hi", "Sure", "More", "No")
    whole = encode(conversation, tokenizer)
    conversation[1]["train"] = False
    assert encode(conversation, tokenizer).input_ids == whole.input_ids
    assert labelled(conversation, tokenizer) == ["No<|im_end|>"]
    greeting = [{"role": "assistant", "content": "Hello", "train": False}, *chat("Hi", "Sure")]
    assert labelled(greeting, tokenizer) == ["Sure<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_a_marked_word_in_the_data_is_a_word(template: str) -> None:
    """The marks that stand for words must not be found in words."""
    words = "Zmark0x Zmarkz1x <think> [/THINK]"
    assert labelled(chat(words, words), tiny_tokenizer(template)) == [words + "<|im_end|>"]


def test_a_template_that_rewrites_history_is_refused() -> None:
    tokenizer = tiny_tokenizer(DROPS_THINKING)
    turns = ("Hi", "<think>so</think>Sure", "More", "No")
    with pytest.raises(ValueError, match="rewrites history"):
        encode(chat(*turns), tokenizer)
    assert labelled(chat(*turns[:2]), tokenizer) == ["<think>so</think>Sure<|im_end|>"]


def test_what_the_template_refuses_is_a_value_error() -> None:
    first = [{"role": "assistant", "content": "Hello"}]
    for template in (ALTERNATING, "{% generation %}{% endgeneration %}" + ALTERNATING):
        with pytest.raises(ValueError, match="refuses the conversation .*user first"):
            encode(first, tiny_tokenizer(template))
    with pytest.raises(ValueError, match="must have a turn before the assistant's"):
        encode(first, tiny_tokenizer())


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10**9) }}",
        "{{ '\\ud800' }}",
    ],
)
def test_what_goes_wrong_in_a_template_is_a_value_error(template: str) -> None:
    with pytest.raises(BadConversation, match="the chat template refuses"):
        prompt_text([{"role": "user", "content": "x"}], tiny_tokenizer(template))


def test_a_tokenizer_must_have_a_template_and_be_fast() -> None:
    without = tiny_tokenizer(None)
    for act in (lambda: encode(chat("Hi"), without), lambda: header_ids(without)):
        with pytest.raises(ValueError, match="must have a chat template, got none"):
            act()

    class Slow:
        is_fast = False
        chat_template = CHATML
        get_chat_template = tiny_tokenizer().get_chat_template
        apply_chat_template = tiny_tokenizer().apply_chat_template

    with pytest.raises(ValueError, match="must be a fast one.*got Slow"):
        encode(chat("Hi"), Slow())


@pytest.mark.parametrize("template", [CHATML, GENERATION, DEFAULT_SYSTEM])
def test_header_is_what_the_generation_prompt_adds(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    header = header_ids(tokenizer)
    assert tokenizer.decode(header) == "<|im_start|>assistant\n"
    encoded = encode(chat("Hi", "Sure"), tokenizer)
    first = next(n for n, label in enumerate(encoded.labels) if label != -100)
    assert encoded.input_ids[first - len(header) : first] == header


def test_no_header_is_refused() -> None:
    template = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"
    with pytest.raises(ValueError, match="must add the assistant header"):
        header_ids(tiny_tokenizer(template))


def test_prompt_text_ends_with_the_header() -> None:
    tokenizer = tiny_tokenizer()
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text("Hi", tokenizer) == text
    assert prompt_text(chat("Hi"), tokenizer) == text
    assert prompt_text(chat("Hi", "Sure"), tokenizer) == text  # the answer is not given away
    assert tokenizer.apply_chat_template(chat("Hi", "Sure"), tokenize=False).startswith(text)
