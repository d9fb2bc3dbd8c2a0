"""Answer rows and post-only inputs against rows written by hand and the released golden values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pact.data.spans import IGNORE, AnswerRows, answer_rows, post_only_inputs

GOLDEN = Path(__file__).parents[1] / "golden"
HEADER = [90, 91]
PAD = 2  # also the token that ends every answer: pad and end of turn are the same id
_ = IGNORE


def rows_of(*lines: list[int]) -> AnswerRows:
    return answer_rows(torch.tensor(lines))


def listed(rows: AnswerRows) -> list[tuple[int, ...]]:
    """(sequence, position, step, answer) of every row."""
    return [tuple(row) for row in torch.stack(list(rows), dim=1).tolist()]


CASES = {
    "one answer": ([[_, _, 7, 8, 2]], [(0, 1, 0, 0), (0, 2, 1, 0), (0, 3, 2, 0)]),
    "no state predicts position 0, so the answer there begins at step 1": (
        [[7, 8, 2, _]],
        [(0, 0, 1, 0), (0, 1, 2, 0)],
    ),
    "an answer of the token at position 0 alone has no row and no number": (
        [[7, _, 8, 2]],
        [(0, 1, 0, 0), (0, 2, 1, 0)],
    ),
    "an empty answer is its end of turn": ([[_, _, 2, _]], [(0, 1, 0, 0)]),
    "three turns, an answer each": (
        [[_, 7, 2, _, 8, _, 9, 2]],
        [(0, 0, 0, 0), (0, 1, 1, 0), (0, 3, 0, 1), (0, 5, 0, 2), (0, 6, 1, 2)],
    ),
    "cut inside the answer": ([[_, _, 7, 8]], [(0, 1, 0, 0), (0, 2, 1, 0)]),
    "answers are numbered over the batch, past a line without one": (
        [[_, 7, _, _], [_, _, _, _], [_, _, 8, 2]],
        [(0, 0, 0, 0), (2, 1, 0, 1), (2, 2, 1, 1)],
    ),
    "an answer at position 0 after one at the end of the line before": (
        [[_, _, 7], [8, 2, _]],
        [(0, 1, 0, 0), (1, 0, 1, 1)],
    ),
    "no answer at all": ([[_, _], [_, _]], []),
    "one position": ([[7]], []),
    "no position": ([[]], []),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_by_hand(name: str) -> None:
    labels, expected = CASES[name]
    rows = answer_rows(torch.tensor(labels, dtype=torch.int64))
    assert listed(rows) == expected
    assert all(field.dtype == torch.int64 and field.dim() == 1 for field in rows)


def test_post_only_lines_by_hand() -> None:
    labels = torch.tensor([[_, 7, 8, 2, _, 2, _], [9, 7, 2, _, _, 8, 7], [_, _, _, _, _, _, _]])
    input_ids = torch.tensor([[5, 7, 8, 2, 5, 2, 2], [9, 7, 2, 5, 5, 8, 7], [5, 5, 2, 2, 2, 2, 2]])
    before = input_ids.clone()
    rows = answer_rows(labels)
    post = post_only_inputs(input_ids, rows, HEADER, PAD)
    assert post.input_ids.tolist() == [
        [90, 91, 7, 8],
        [90, 91, 2, 2],  # the empty answer: its end of turn is its last token, the rest is padding
        [
            90,
            91,
            9,
            7,
        ],  # starts at position 0: its first token is an input, though no row predicts it
        [90, 91, 8, 2],
    ]
    assert post.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert torch.equal(post.sequence, rows.answer)
    assert post.position.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert torch.equal(input_ids, before)


def test_a_row_of_step_t_sees_header_and_t_tokens() -> None:
    labels = torch.tensor([[_, 11, 12, 13, _, 14, 15, _], [_, _, _, 16, 17, 18, 19, 20]])
    rows = answer_rows(labels)
    post = post_only_inputs(labels.clamp(min=0), rows, HEADER, PAD)
    for n in range(rows.step.numel()):
        sequence, target = rows.sequence[n], rows.position[n] + 1
        seen = post.input_ids[post.sequence[n], : post.position[n] + 1].tolist()
        assert seen == HEADER + labels[sequence, target - rows.step[n] : target].tolist()
        assert post.attention_mask[post.sequence[n], post.position[n]] == 1


def test_no_rows_give_no_lines() -> None:
    rows = rows_of([_, _, _])
    post = post_only_inputs(torch.tensor([[1, 2, 3]]), rows, HEADER, PAD)
    assert post.input_ids.shape == post.attention_mask.shape == (0, len(HEADER))
    assert post.sequence.shape == post.position.shape == (0,)


def test_header_may_be_a_tensor_and_never_empty() -> None:
    rows, ids = rows_of([_, 7, 8]), torch.tensor([[5, 7, 8]])
    post = post_only_inputs(ids, rows, torch.tensor(HEADER), PAD)
    assert post.input_ids.tolist() == [[90, 91, 7]]
    with pytest.raises(ValueError, match="header must have at least one token"):
        post_only_inputs(ids, rows, [], PAD)


def test_labels_must_be_two_dimensional() -> None:
    with pytest.raises(ValueError, match=r"\(B, L\), got the shape \(3,\)"):
        answer_rows(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("name", ["default", "short_answers", "no_answer_row", "flat_decay_off"])
def test_released_values(name: str) -> None:
    golden = {key: torch.from_numpy(np.atleast_1d(value)) for key, value in _arrays(name)}
    labels, mask = golden["labels"], golden["answer_mask"]
    rows = answer_rows(labels)
    sequence, step = mask.nonzero(as_tuple=True)  # the released rows: answer token `step` of a line
    assert torch.equal(rows.sequence, sequence)
    assert torch.equal(rows.step, step)
    post = post_only_inputs(golden["input_ids"], rows, golden["assistant_header_ids"], 0)
    lines = golden["post_input_ids"][
        mask.any(dim=1)
    ]  # a line without an answer has no post-only line
    assert torch.equal(post.input_ids, lines)
    assert torch.equal(post.attention_mask.sum(1), mask.sum(1)[mask.any(dim=1)].long() + 2)


def _arrays(name: str) -> list[tuple[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return [(key, arrays[key]) for key in arrays if key != "parameters_json"]
