"""A collated batch by hand: padding, masks, rows and the post-only lines."""

from __future__ import annotations

import pytest
import torch

from pact.data.collate import Collator
from pact.data.template import Encoded, encode, header_ids
from tests.tiny import tiny_tokenizer

EXAMPLES = [
    {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]},
    {"input_ids": [5, 9, 2], "labels": [-100, 9, 2]},
]
EXPECTED = {
    "input_ids": [[5, 6, 7, 8, 2], [5, 9, 2, 2, 2]],
    "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],  # pad is the end of turn: by length
    "labels": [[-100, -100, 7, 8, 2], [-100, 9, 2, -100, -100]],
    "row_sequence": [0, 0, 0, 1, 1],
    "row_position": [1, 2, 3, 0, 1],
    "row_step": [0, 1, 2, 0, 1],
    "row_answer": [0, 0, 0, 1, 1],
    "row_target": [7, 8, 2, 9, 2],
}
POST_ONLY = {
    "post_input_ids": [[90, 7, 8], [90, 9, 2]],
    "post_attention_mask": [[1, 1, 1], [1, 1, 0]],
    "post_sequence": [0, 0, 0, 1, 1],
    "post_position": [0, 1, 2, 0, 1],
}


def test_a_batch_by_hand() -> None:
    batch = Collator([90], pad_token_id=2)(EXAMPLES)
    assert {name: value.tolist() for name, value in batch.items()} == EXPECTED | POST_ONLY
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_without_post_only_no_header_is_needed() -> None:
    batch = Collator([], pad_token_id=2, post_only=False)(EXAMPLES)
    assert {name: value.tolist() for name, value in batch.items()} == EXPECTED


def test_lists_tensors_and_encoded_are_the_same() -> None:
    tensors = [{key: torch.tensor(value) for key, value in row.items()} for row in EXAMPLES]
    encoded = [Encoded(row["input_ids"], row["labels"]) for row in EXAMPLES]
    for examples in (tensors, encoded):
        batch = Collator([90], pad_token_id=2)(examples)
        assert {name: value.tolist() for name, value in batch.items()} == EXPECTED | POST_ONLY


def test_a_batch_without_rows() -> None:
    batch = Collator([90], pad_token_id=2)([{"input_ids": [5, 6], "labels": [-100, -100]}])
    assert batch["row_target"].shape == (0,)
    assert batch["post_input_ids"].shape == (0, 1)


def test_labels_must_match_the_ids() -> None:
    with pytest.raises(ValueError, match="one label per token, got 2 ids and 1 labels"):
        Collator([90], pad_token_id=2)([{"input_ids": [5, 6], "labels": [-100]}])


def test_rows_predict_the_answers_of_a_real_template() -> None:
    tokenizer = tiny_tokenizer()
    answers = ["Sure, here.", "", "The bread"]
    conversations = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    collate = Collator(header_ids(tokenizer), tokenizer.pad_token_id)
    batch = collate([encode(turns, tokenizer) for turns in conversations])
    for number, answer in enumerate(answers):
        target = batch["row_target"][batch["row_answer"] == number]
        assert tokenizer.decode(target) == answer + "<|im_end|>"
        line = batch["post_input_ids"][number][batch["post_attention_mask"][number] == 1]
        assert tokenizer.decode(line) == "<|im_start|>assistant\n" + answer


def test_examples_keep_their_index() -> None:
    named = [{**example, "example": index} for example, index in zip(EXAMPLES, (7, 3), strict=True)]
    collate = Collator([90], pad_token_id=2)
    assert collate(named)["example"].tolist() == [7, 3]
    assert collate(named)["example"].dtype == torch.int64
    assert "example" not in collate([named[0], EXAMPLES[1]])
