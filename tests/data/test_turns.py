"""A conversation of three turns: every assistant turn is an answer, user turns never are."""

from __future__ import annotations

import pytest

from pact.data.collate import Collator
from pact.data.packing import PackedCollator
from pact.data.spans import IGNORE
from pact.data.template import encode, header_ids
from tests.tiny import tiny_tokenizer

_ = IGNORE

# user header 50, assistant header 90, end of turn 2 (the pad token too)
#            0   1  2   3   4   5  6   7   8  9  10  11 12  13  14 15  16  17  18  19 20
INPUT_IDS = [50, 11, 2, 90, 21, 22, 2, 50, 12, 2, 90, 23, 2, 50, 13, 2, 90, 24, 25, 26, 2]
LABELS = [*[_] * 4, 21, 22, 2, *[_] * 4, 23, 2, *[_] * 4, 24, 25, 26, 2]
ROWS = {
    "row_sequence": [0] * 9,
    "row_position": [3, 4, 5, 10, 11, 16, 17, 18, 19],
    "row_step": [0, 1, 2, 0, 1, 0, 1, 2, 3],
    "row_answer": [0, 0, 0, 1, 1, 2, 2, 2, 2],
    "row_target": [21, 22, 2, 23, 2, 24, 25, 26, 2],
}
PADDED = {
    "post_input_ids": [[90, 21, 22, 2], [90, 23, 2, 2], [90, 24, 25, 26]],
    "post_attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
    "post_sequence": [0, 0, 0, 1, 1, 2, 2, 2, 2],
    "post_position": [0, 1, 2, 0, 1, 0, 1, 2, 3],
}
PACKED = {  # the longest answer first
    "position_ids": [[*range(21)]],
    "post_input_ids": [[90, 24, 25, 26, 90, 21, 22, 90, 23]],
    "post_attention_mask": [[1] * 9],
    "post_position_ids": [[0, 1, 2, 3, 0, 1, 2, 0, 1]],
    "post_sequence": [0] * 9,
    "post_position": [4, 5, 6, 7, 8, 0, 1, 2, 3],
}
COLLATORS = {
    "padded": (Collator([90], 2), PADDED),
    "packed": (PackedCollator([90], 2, pack_length=21), PACKED),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_three_turns_by_hand(name: str) -> None:
    collator, post_only = COLLATORS[name]
    batch = collator([{"input_ids": INPUT_IDS, "labels": LABELS}])
    line = {"input_ids": [INPUT_IDS], "labels": [LABELS], "attention_mask": [[1] * 21]}
    assert {key: value.tolist() for key, value in batch.items()} == line | ROWS | post_only


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_three_turns_of_a_real_template(packed: bool) -> None:
    """Beside another conversation: each answer with its end of turn, and its header before it."""
    tokenizer = tiny_tokenizer()
    answers = ["Sure, here.", "The bread is Paris.", "I cannot"]
    turns = [
        {"role": role, "content": content}
        for number, answer in enumerate(answers)
        for role, content in (("user", f"question {number}"), ("assistant", answer))
    ]
    other = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So said"}]
    collator = Collator(header_ids(tokenizer), tokenizer.pad_token_id)
    if packed:
        collator = PackedCollator(**vars(collator), pack_length=400)
    batch = collator([encode(turns, tokenizer), encode(other, tokenizer)])
    assert batch["row_answer"].max() == 3
    for number, answer in enumerate([*answers, "So said"]):
        rows = batch["row_answer"] == number
        target = batch["row_target"][rows]
        assert tokenizer.decode(target) == answer + "<|im_end|>"
        assert batch["row_step"][rows].tolist() == [*range(len(target))]
        line, last = batch["post_sequence"][rows][0], batch["post_position"][rows][-1]
        first = batch["post_position"][rows][0] - len(header_ids(tokenizer)) + 1
        seen = batch["post_input_ids"][line, first : last + 1]
        assert tokenizer.decode(seen) == "<|im_start|>assistant\n" + answer
