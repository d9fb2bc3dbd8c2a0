"""Rows that are token ids already, with labels or with masks of what is learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pact.data.examples import left_out, say_unread
from pact.data.spans import IGNORE

MASKS = ("completion_mask", "assistant_masks")


def is_tokenised(row: Any) -> bool:
    """Whether a row is token ids."""
    return isinstance(row, Mapping) and row.get("input_ids") is not None


def tokenised_dataset(
    rows: Iterable[tuple[str, Any]],
    name: str,
    vocabulary: int,
    max_length: int | None,
    *,
    skip_bad_rows: bool = False,
) -> Dataset:
    """Rows as `pact.data.dataset.encode_examples` makes them.

    Args:
        rows: what errors call each, and the row: `input_ids`, with `labels` or a mask of what is
            learnt; padding under an `attention_mask` of zeros is cut off.
        name: of the source.
        vocabulary: the tokenizer's length; ids are below it.
        max_length: tokens kept of each, from the left; None keeps all.
        skip_bad_rows: leave out rows that are malformed, and count them in the log.

    Raises:
        ValueError: a row is malformed, or none has a label.
    """
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    faults: list[str] = []
    unread: set[str] = set()
    seen = 0
    for where, row in rows:
        seen += 1
        try:
            ids, labels = _labelled(row, where, vocabulary)
        except ValueError as error:
            if not skip_bad_rows:
                raise
            faults.append(str(error))
            continue
        unread |= _unread(row)
        ids, labels = ids[:max_length], labels[:max_length]
        if bool((labels[1:] != IGNORE).any()):
            columns["input_ids"].append(ids.astype(np.int32))
            columns["labels"].append(labels.astype(np.int32))
        else:
            faults.append(f"{where} has no label within max_length={max_length}")
    left_out(faults, seen, name)
    say_unread(unread, "columns", name)
    if not columns["labels"]:
        raise ValueError(
            f"at least one row of {name} must have a label, got none of {seen}"
            + (f"; the first: {faults[0]}" if faults else "")
        )
    ids_type = List(Value("int32"))
    return Dataset.from_dict(
        columns, features=Features({"input_ids": ids_type, "labels": ids_type})
    )


def _unread(row: Mapping[str, Any]) -> set[str]:
    """The names of a row's columns that are left out; labels go before masks."""
    learnt = MASKS if row.get("labels") is None else ("labels",)
    names = {str(name) for name, value in row.items() if value is not None}
    return names - {"input_ids", "attention_mask", *learnt}


def _labelled(row: Any, where: str, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """(L,) ids and labels, int64: a narrower type would turn an id too large into another."""
    if not is_tokenised(row):
        raise ValueError(f"{where} must hold input_ids as the rows before it do")
    ids = _ints(row["input_ids"], f"{where}: input_ids")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(
            f"{where}: every token id must be in [0, {vocabulary}), got {int(ids.min())} to "
            f"{int(ids.max())}: it is another model's"
        )
    if row.get("position_ids") is not None or row.get("seq_lengths") is not None:
        raise ValueError(
            f"{where} must be one sequence, got packed ones (position_ids or seq_lengths): give a "
            "row for each, and set packing"
        )
    if row.get("labels") is not None:
        labels = _ints(row["labels"], f"{where}: labels")
        _same_length(ids, labels, f"{where}: labels")
        if bool(((labels != IGNORE) & (labels != ids)).any()):
            raise ValueError(
                f"{where}: a label must be its token, or {IGNORE}, got another: labels are not "
                "shifted here"
            )
    else:
        masks = [name for name in MASKS if row.get(name) is not None]
        if not masks:
            raise ValueError(
                f"{where} must say which tokens are learnt, by labels or {' or '.join(MASKS)}, got "
                f"{sorted(map(str, row))}"
            )
        labels = ids.copy()
        for name in masks:
            mask = _ints(row[name], f"{where}: {name}")
            _same_length(ids, mask, f"{where}: {name}")
            labels[mask == 0] = IGNORE
    mask = row.get("attention_mask")
    if mask is None:
        return ids, labels
    kept = _ints(mask, f"{where}: attention_mask").astype(bool)
    _same_length(ids, kept, f"{where}: attention_mask")
    places = np.flatnonzero(kept)
    if places.size and places[-1] - places[0] + 1 != places.size:
        raise ValueError(f"{where}: attention_mask must be ones in one run, got a gap")
    return ids[kept], labels[kept]


def _ints(value: Any, where: str) -> np.ndarray:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where} must be a list of integers, got {value!r:.60}") from error
    is_whole = found.dtype.kind in "iub" and found.max(initial=0) <= np.iinfo(np.int64).max
    if found.ndim != 1 or (found.size and not is_whole):
        raise ValueError(f"{where} must be a list of integers, got {value!r:.60}")
    return found.astype(np.int64)


def _same_length(ids: np.ndarray, other: np.ndarray, where: str) -> None:
    if ids.shape != other.shape:
        raise ValueError(f"{where} must have one entry per token, got {other.size} of {ids.size}")
