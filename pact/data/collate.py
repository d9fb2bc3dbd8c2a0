"""Encoded examples to one padded batch that knows its answer rows.

Legend: B sequences, L positions, N answer rows, A answers, P positions of a post-only line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact.data.anchors import ANCHOR
from pact.data.spans import IGNORE, answer_rows, post_only_inputs
from pact.data.template import Encoded


@dataclass(frozen=True)
class Collator:
    """Pads to the longest example of the batch; the mask goes by length, never by the pad id.

    The batch holds, all int64:

        input_ids, attention_mask, labels                   (B, L)
        row_sequence, row_position, row_step, row_answer    (N,)    see `spans.AnswerRows`
        row_target                                          (N,)    the tokens to predict
        post_input_ids, post_attention_mask                 (A, P)  with `post_only`
        post_sequence, post_position                        (N,)    with `post_only`
        example                                             (B,)    if the examples have it
        row_learnt, row_held                                rows of other examples and of anchors,
                                                            whose target is -100; if there are any
    """

    header_ids: Sequence[int]
    """The assistant header, `pact.data.template.header_ids`; unused without `post_only`."""
    pad_token_id: int
    """Fills ids beyond an example's end; it may be the end-of-turn token."""
    post_only: bool = True
    """Whether the gate needs the post-only inputs."""

    def __call__(self, examples: Sequence[Encoded | Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate examples with `input_ids` and `labels`, each a list or tensor of its length.

        Their `example`, the index in the data set, names them to a cached reference.
        """
        pairs = [_tensors(example) for example in examples]
        lengths = torch.tensor([ids.numel() for ids, _ in pairs])  # (B,)
        shape = len(pairs), int(lengths.max())
        input_ids = torch.full(shape, self.pad_token_id)  # (B, L)
        labels = torch.full(shape, IGNORE)  # (B, L)
        for line, (ids, marks) in enumerate(pairs):
            input_ids[line, : ids.numel()] = ids
            labels[line, : marks.numel()] = marks
        mask = torch.arange(shape[1]) < lengths[:, None]  # (B, L)
        rows = answer_rows(labels)
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "labels": labels,
            "row_sequence": rows.sequence,
            "row_position": rows.position,
            "row_step": rows.step,
            "row_answer": rows.answer,
            "row_target": labels[rows.sequence, rows.position + 1],
        }
        anchors = [isinstance(e, Mapping) and bool(e.get(ANCHOR, False)) for e in examples]
        if any(anchors):
            is_held = torch.tensor(anchors)[rows.sequence]  # (N,)
            batch["row_target"] = batch["row_target"].masked_fill(is_held, IGNORE)
            batch["row_learnt"] = (~is_held).nonzero().squeeze(1)
            batch["row_held"] = is_held.nonzero().squeeze(1)
        if self.post_only:
            post = post_only_inputs(input_ids, rows, self.header_ids, self.pad_token_id)
            batch |= {f"post_{name}": value for name, value in post._asdict().items()}
        named = [e["example"] for e in examples if isinstance(e, Mapping) and "example" in e]
        if len(named) == len(examples):
            batch["example"] = torch.tensor([int(index) for index in named])
        return batch


def has_anchors(batch: Mapping[str, Tensor]) -> bool:
    """Whether a collated batch has rows of anchors."""
    return "row_held" in batch and batch["row_held"].numel() > 0


def held_part(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a reference needs of a batch to know its rows of anchors: their lines, and these rows.

    A batch on a GPU waits for it. `example` still names all examples, whose other rows a cache
    filled for anchors alone does not have.

    Args:
        batch: that `has_anchors`, from a collator.
    """
    held = batch["row_held"]
    part = {name: batch[f"row_{name}"][held] for name in ("position", "step", "answer", "target")}
    part = {f"row_{name}": rows for name, rows in part.items()}
    lines, part["row_sequence"] = batch["row_sequence"][held].unique(return_inverse=True)
    longest = int(batch["attention_mask"][lines].sum(1).max())  # anchors are short
    for name in ("input_ids", "attention_mask", "labels", "position_ids"):
        if name in batch:
            part[name] = batch[name][lines, :longest]
    if "post_position" in batch:
        part["post_position"] = batch["post_position"][held]
        lines, part["post_sequence"] = batch["post_sequence"][held].unique(return_inverse=True)
        for name in ("post_input_ids", "post_attention_mask", "post_position_ids"):
            if name in batch:
                part[name] = batch[name][lines]
    if "example" in batch:
        part["example"] = batch["example"]
    return part


def learnt_rows(batch: Mapping[str, Tensor]) -> int:
    """Rows of a collated batch whose token is learnt: all but those of anchors."""
    return batch.get("row_learnt", batch["row_target"]).numel()


def count_rows(batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Tensor:
    """(2,) int64, rows of collated batches whose token is learnt, and those of anchors."""
    learnt = total = 0
    for batch in batches:
        learnt += learnt_rows(batch)
        total += batch["row_target"].numel()
    return torch.tensor([learnt, total - learnt], device=device)


def denominator(rows: Tensor) -> Tensor:
    """() what the means of a step are over, at least 1.

    Args:
        rows: (2,) its `count_rows` over all processes. A step of anchors alone is a mean over them.
    """
    learnt, held = rows.unbind()
    return torch.where(learnt > 0, learnt, held).clamp(min=1)


def pad_id(tokenizer: Any) -> int:
    """What fills padding: the tokenizer's pad token, else its end of sequence, else token 0.

    Masks hide padding, so any token of the vocabulary does.
    """
    known = tokenizer.pad_token_id, tokenizer.eos_token_id
    return next((token for token in known if token is not None), 0)


def _tensors(example: Encoded | Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The example's ids and labels, (L,) int64 each."""
    fields = example._asdict() if isinstance(example, Encoded) else example
    missing = [name for name in ("input_ids", "labels") if fields.get(name) is None]
    if missing:
        raise ValueError(
            f"an example must have input_ids and labels, got {sorted(fields)} without "
            f"{missing[0]}: encode conversations with pact.data.dataset.encode_examples"
        )
    ids, labels = (torch.as_tensor(fields[name]).long() for name in ("input_ids", "labels"))
    if ids.numel() != labels.numel():
        raise ValueError(
            f"an example must have one label per token, got {ids.numel()} ids and {labels.numel()} "
            "labels: encode it with pact.data.template.encode"
        )
    _check_positions(fields.get("position_ids"), ids.numel())
    mask = fields.get("attention_mask")
    return (ids, labels) if mask is None else _unpadded(ids, labels, torch.as_tensor(mask).bool())


def _unpadded(ids: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens under an attention mask of ones, and their labels."""
    places = mask.nonzero().flatten()
    first, last = (int(places[0]), int(places[-1]) + 1) if places.numel() else (0, 0)
    if mask.shape != ids.shape or last - first != places.numel():
        raise ValueError(
            "an example's attention_mask must be ones on its tokens and zeros on padding at its "
            f"ends, got {places.numel()} ones of {mask.numel()} for {ids.numel()} ids: give an "
            "example for each sequence"
        )
    if bool((labels[~mask] != IGNORE).any()):
        raise ValueError(
            f"padding must not be labelled, got labels other than {IGNORE} where attention_mask is "
            f"0: set them to {IGNORE}"
        )
    return ids[first:last], labels[first:last]


def _check_positions(given: Any, length: int) -> None:
    """Refuse examples that are several sequences end to end, which would attend to each other."""
    if given is not None and not torch.equal(torch.as_tensor(given).long(), torch.arange(length)):
        raise ValueError(
            "an example must be one sequence, whose position_ids count from 0 without a break, got "
            "others: give an example for each sequence, and pack them with "
            "pact.data.packing.PackedCollator"
        )
