"""The encoded table: its columns, what it drops, what it refuses."""

from __future__ import annotations

import logging

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.template import encode
from tests.tiny import CHATML, tiny_tokenizer

SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure"}]
LONG = [{"role": "user", "content": "bread " * 30}, {"role": "assistant", "content": "Sure"}]
SILENT = SHORT[:1]


def test_columns_are_int32_lists_of_the_encoded_conversations() -> None:
    tokenizer = tiny_tokenizer()
    table = encode_examples([SHORT, LONG], tokenizer, None)
    assert {name: str(column) for name, column in table.features.items()} == {
        "input_ids": "List(Value('int32'))",
        "labels": "List(Value('int32'))",
    }
    for row, conversation in zip(table, [SHORT, LONG], strict=True):
        assert (row["input_ids"], row["labels"]) == encode(conversation, tokenizer)


def test_examples_without_a_row_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = encode_examples([LONG, SHORT, SILENT], tiny_tokenizer(), 40)
    assert len(table) == 1
    assert "dropped 2 of 3 examples: no answer token within max_length=40" in caplog.text


def test_answers_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    length = len(encode(SHORT, tokenizer).input_ids)
    other = [SHORT[0], {"role": "assistant", "content": "Sure, " * 20}]
    lost = sum(label != -100 for label in encode(other, tokenizer).labels[length:])
    with caplog.at_level(logging.WARNING):
        table = encode_examples([SHORT, other], tokenizer, length)
    assert [len(ids) for ids in table["input_ids"]] == [length, length]
    assert (
        f"cut the answers of 1 of 2 examples at max_length={length}: {lost} answer" in caplog.text
    )


def test_rows_that_the_template_refuses_are_named_or_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template = "{% if messages[0]['content'] == 'x' %}{{ raise_exception('no x') }}{% endif %}"
    tokenizer = tiny_tokenizer(template + CHATML)
    bad = Conversation([{"role": "user", "content": "x"}, SHORT[1]], where="line 7 of a.jsonl")
    for rows, name in (([SHORT, bad], "line 7 of a.jsonl"), ([SHORT, SHORT[1:]], "conversation 1")):
        with pytest.raises(ValueError, match=f"^{name}: .*(no x|a turn before the assistant's)"):
            encode_examples(rows, tokenizer, None)
    with caplog.at_level(logging.WARNING):
        table = encode_examples([SHORT, bad, SHORT[1:]], tokenizer, None, skip_bad_rows=True)
    assert len(table) == 1
    assert "left out 2 of 3 rows of the data: line 7 of a.jsonl: " in caplog.text
    with pytest.raises(ValueError, match="no room for any of 1 rows; the first: line 7"):
        encode_examples([bad], tokenizer, None, skip_bad_rows=True)


def test_nothing_is_logged_where_nothing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    encode_examples([SHORT], tiny_tokenizer(), 40)
    assert not caplog.records


def test_no_example_left_is_refused() -> None:
    with pytest.raises(ValueError, match="within max_length=5, got none of 2: raise max_length"):
        encode_examples([SHORT, SHORT], tiny_tokenizer(), 5)


def test_a_token_at_position_0_alone_is_no_row() -> None:
    template = (  # the answer first of all
        "{% generation %}{{ messages[-1]['content'] }}{% endgeneration %}"
        "{{ messages[0]['content'] }}"
    )
    tokenizer = tiny_tokenizer(template)
    assert encode(SHORT, tokenizer, max_length=1).labels != [-100]
    with pytest.raises(ValueError, match="within max_length=1, got none of 1"):
        encode_examples([SHORT], tokenizer, 1)


def test_ids_beyond_the_tokenizers_length_are_refused() -> None:
    words = Tokenizer(WordLevel({"user": 0, "assistant": 1, "Hi": 2, "Sure": 7}))  # a gap: 3 .. 6
    words.pre_tokenizer = WhitespaceSplit()
    template = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template)
    with pytest.raises(ValueError, match="below the tokenizer's length 4, got 7"):
        encode_examples([SHORT], tokenizer, None)
