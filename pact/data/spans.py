"""Which positions of a batch predict an answer token, and the same answers without their prompts.

Legend: B sequences, L positions, N answer rows, A answers, H header tokens, P positions of a
post-only line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100


class AnswerRows(NamedTuple):
    """The N positions whose next token is labelled, by sequence, then by position."""

    sequence: Tensor
    """(N,) int64: line of the batch."""
    position: Tensor
    """(N,) int64: position in the line; its state predicts the token at position + 1."""
    step: Tensor
    """(N,) int64: place of the predicted token within its answer, from 0."""
    answer: Tensor
    """(N,) int64: number of the answer within the batch, from 0, among those with a row."""


class PostOnlyInputs(NamedTuple):
    """One line per answer: the assistant header, then the answer without its last token."""

    input_ids: Tensor
    """(A, P) int64, right-padded."""
    attention_mask: Tensor
    """(A, P) int64: 1 on tokens, 0 on padding."""
    sequence: Tensor
    """(N,) int64: the line of each row's state; it equals `rows.answer`."""
    position: Tensor
    """(N,) int64: the place of each row's state in its line, H + step - 1."""


def answer_rows(labels: Tensor) -> AnswerRows:
    """Find the rows of a batch: positions whose next token is labelled.

    An answer is a maximal run of labelled tokens; a sequence may hold several, or none. No state
    predicts the token at position 0, so an answer that starts there has its first row at step 1.
    Prompt and padding positions are never rows; only the last position before an answer is one,
    since its state predicts the answer's first token.

    Args:
        labels: (B, L) int64, -100 outside the answers.

    Returns:
        The rows, on the device of `labels`; finding them waits for the device once.
    """
    if labels.dim() != 2:
        raise ValueError(f"labels must be (B, L), got the shape {tuple(labels.shape)}")
    labelled = labels != IGNORE  # (B, L)
    starts = labelled.clone()  # (B, L), true on the first token of every answer
    starts[:, 1:] &= ~labelled[:, :-1]
    index = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)  # (B, L)
    begin = torch.where(starts, index, 0).cummax(dim=1).values  # (B, L), where its answer starts
    sequence, position = labelled[:, 1:].nonzero(as_tuple=True)  # (N,), (N,)
    step = position + 1 - begin[sequence, position + 1]  # (N,)
    opens = (step == 0) | (position == 0)  # (N,), the first row of every answer
    return AnswerRows(sequence, position, step, opens.cumsum(0) - 1)


def post_only_inputs(
    input_ids: Tensor, rows: AnswerRows, header_ids: Sequence[int] | Tensor, pad_token_id: int
) -> PostOnlyInputs:
    """Build the post-only batch: what the reference sees when the prompt is taken away.

    Line a holds the header at 0 .. H - 1 and token j of answer a at H + j; the answer's last token
    is left out, since no row needs it as an input. The state of row n is at
    [answer[n], H + step[n] - 1]: never a prompt position, of which there are none, nor padding.

    Args:
        input_ids: (B, L) int64, the batch that `rows` came from.
        rows: its answer rows.
        header_ids: H >= 1 token ids, the chat template's assistant header.
        pad_token_id: fills the lines at the right; it may be a token that answers use too.

    Returns:
        The lines and where each row is in them; (0, H) lines where there are no rows.
    """
    header = torch.as_tensor(header_ids, dtype=torch.int64, device=input_ids.device)  # (H,)
    if header.dim() != 1 or header.numel() == 0:
        raise ValueError(
            "the assistant header must have at least one token, whose state predicts an answer's "
            f"first token, got {header.tolist()}: give pact.data.template.header_ids(tokenizer)"
        )
    size = header.numel()
    answers = int(rows.answer[-1]) + 1 if rows.answer.numel() else 0
    longest = int(rows.step.max()) if rows.step.numel() else 0
    lines = input_ids.new_full((answers, size + longest), pad_token_id)  # (A, P)
    mask = torch.zeros_like(lines)  # (A, P)
    lines[:, :size] = header
    mask[:, :size] = 1
    position = size + rows.step - 1  # (N,)
    later = rows.step > 0  # the state of step 0 is the header's last, which is there already
    place = rows.answer[later], position[later]
    lines[place] = input_ids[rows.sequence[later], rows.position[later]]
    mask[place] = 1
    return PostOnlyInputs(lines, mask, rows.answer, position)
