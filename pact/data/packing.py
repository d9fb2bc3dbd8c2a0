"""Encoded examples end to end in a few full lines, instead of one padded line each.

Legend: B examples, L positions of a padded line, R packed lines, S positions of a packed line,
N answer rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pact.data.collate import Collator
from pact.data.spans import IGNORE
from pact.data.template import Encoded


@dataclass(frozen=True)
class PackedCollator(Collator):
    """Packs the examples of a batch into as few lines as first-fit decreasing finds, evenly filled.

    The rows are those of `Collator`, in its order and with its steps, answers and targets; only
    the places of their states differ. The batch holds, all int64:

        input_ids, attention_mask, labels, position_ids          (R, S)
        row_sequence, row_position                               (N,)    line and place of a state
        row_step, row_answer, row_target                         (N,)    as from `Collator`
        post_input_ids, post_attention_mask, post_position_ids   (R', S')  with `post_only`
        post_sequence, post_position                             (N,)      with `post_only`
        example                                                  (B,)    as from `Collator`

    `position_ids` begin at 0 in every example, which tells `pact.models.hidden_states` where
    attention ends; the padding of a line is a sequence of its own. An example's first token has no
    label, so that no state of the example before it is held to predict it.
    """

    pack_length: int | None = None
    """Most tokens of a line; a longer example has a line of its own. Unset: the longest example."""

    def __post_init__(self) -> None:
        if self.pack_length is not None and self.pack_length < 1:
            raise ValueError(f"pack_length must be at least 1, or unset, got {self.pack_length}")

    def __call__(self, examples: Sequence[Encoded | Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate examples with `input_ids` and `labels`, each a list or tensor of its length."""
        batch = super().__call__(examples)
        batch["labels"][:, :1] = IGNORE
        lines = _lay_out(batch["attention_mask"], self.pack_length)
        sequence, position = batch["row_sequence"], batch["row_position"]
        batch |= {
            "input_ids": lines.pack(batch["input_ids"], self.pad_token_id),
            "attention_mask": lines.attention_mask,
            "labels": lines.pack(batch["labels"], IGNORE),
            "position_ids": lines.position_ids,
            "row_sequence": lines.line[sequence],
            "row_position": lines.offset[sequence] + position,
        }
        if self.post_only:
            lines = _lay_out(batch["post_attention_mask"], self.pack_length)
            sequence, position = batch["post_sequence"], batch["post_position"]
            batch |= {
                "post_input_ids": lines.pack(batch["post_input_ids"], self.pad_token_id),
                "post_attention_mask": lines.attention_mask,
                "post_position_ids": lines.position_ids,
                "post_sequence": lines.line[sequence],
                "post_position": lines.offset[sequence] + position,
            }
        return batch


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items, the longest first, each into the first bin with room for it.

    Args:
        lengths: size of each item.
        capacity: of a bin; an item that is larger has a bin of its own.

    Returns:
        Bins of indices into `lengths`, every one in exactly one bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = (number for number, left in enumerate(room) if lengths[item] <= left)
        number = next(fitting, len(bins))
        if number == len(bins):
            bins.append([])
            room.append(capacity)
        bins[number].append(item)
        room[number] -= lengths[item]
    return bins


def evened_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """As many bins as `first_fit_decreasing` finds, filled alike where that keeps the capacity.

    The items go, the longest first, each into the bin that holds least: the fullest bin, to which
    the others are padded, is then hardly longer than their mean.

    Args:
        lengths: size of each item.
        capacity: of a bin; an item that is larger has a bin of its own.

    Returns:
        Bins of indices into `lengths`, every one in exactly one bin.
    """
    fitted = first_fit_decreasing(lengths, capacity)
    bins: list[list[int]] = [[] for _ in fitted]
    held = [0] * len(fitted)
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        number = held.index(min(held))
        bins[number].append(item)
        held[number] += lengths[item]
    fits = all(size <= capacity or len(b) == 1 for b, size in zip(bins, held, strict=True))
    return bins if fits else fitted


class _Layout(NamedTuple):
    """Where the examples of a padded batch lie once they are packed."""

    line: Tensor  # (B,) of each example
    offset: Tensor  # (B,) of its first token in the line
    attention_mask: Tensor  # (R, S), 1 on tokens
    position_ids: Tensor  # (R, S), from 0 in every example
    tokens: Tensor  # (B, L) bool, the tokens of the padded batch, T of them
    places: tuple[Tensor, Tensor]  # (T,), (T,) line and position of each

    def pack(self, padded: Tensor, fill: int) -> Tensor:
        """The values (B, L) of a padded batch as lines (R, S), with `fill` between them."""
        packed = torch.full_like(self.position_ids, fill)
        packed[self.places] = padded[self.tokens]
        return packed


def _lay_out(mask: Tensor, pack_length: int | None) -> _Layout:
    """Choose the lines for a right-padded batch, whose mask is (B, L), 1 on tokens."""
    lengths = mask.sum(dim=1)  # (B,)
    longest = max(lengths.tolist(), default=0)
    bins = evened_bins(lengths.tolist(), pack_length or longest)
    line, offset = torch.zeros_like(lengths), torch.zeros_like(lengths)  # (B,), (B,)
    used = lengths.new_zeros(len(bins))  # (R,)
    for number, examples in enumerate(bins):
        for index in examples:
            line[index], offset[index] = number, used[number]
            used[number] += lengths[index]
    tokens = mask.bool()
    example, position = tokens.nonzero(as_tuple=True)  # (T,), (T,)
    places = line[example], offset[example] + position
    place = torch.arange(max(used.tolist(), default=0))  # (S,)
    attention_mask = (place < used[:, None]).long()
    # Padding counts from 0 too, never beyond the positions that a model has for an example.
    position_ids = (place - used[:, None]) % max(longest, 1)
    position_ids[places] = position
    return _Layout(line, offset, attention_mask, position_ids, tokens, places)
