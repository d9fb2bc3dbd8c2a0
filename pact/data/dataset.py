"""All conversations as one Arrow table of token ids and labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Features, List, Value

from pact.data.conversation import Conversation, Message
from pact.data.examples import left_out
from pact.data.spans import IGNORE
from pact.data.template import BadConversation, Encoded, Encoder, with_template_defaults

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 1_000_000
"""Longest conversation, however few tokens are kept; twice as many take about ten seconds and a
gigabyte to encode."""
MOST_PER_TOKEN = 1000
"""Characters of a conversation for each token that is kept."""

_Turns = TypeVar("_Turns", bound=Sequence[Message])
_Used = TypeVar("_Used")


def encode_examples(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any,
    max_length: int | None,
    *,
    skip_bad_rows: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    fold_system: bool = False,
) -> Dataset:
    """Encode conversations; the log counts those that are cut, and those that are dropped since
    nothing is left to predict.

    Args:
        conversations: as `pact.data.examples.load_examples` returns them.
        tokenizer: a fast tokenizer with a chat template.
        max_length: tokens kept of each, from the left; None keeps all.
        skip_bad_rows: leave out what the template refuses or does not render, and count it.
        chat_template_kwargs: variables of the template, see
            `pact.data.template.with_template_defaults`.
        fold_system: put a system turn into the user's first one where the template has none.

    Returns:
        A data set with the columns `input_ids` and `labels`, lists of int32.

    Raises:
        ValueError: no example has an answer token within max_length; an id is not below the
            tokenizer's length; a row is far longer than max_length, or the template refuses it,
            which is named; or `encode` raises one.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    cuts: list[int] = []  # answer tokens lost, of each example that is kept
    encoder = Encoder(
        with_template_defaults(tokenizer, chat_template_kwargs), fold_system=fold_system
    )

    def encoded_whole(conversation: Sequence[Message]) -> Encoded:
        _check_size(conversation, max_length)
        return encoder(conversation)

    whole = _each(conversations, encoded_whole, skip_bad_rows)
    for _, encoded in whole:
        _check_ids(encoded, len(tokenizer))
        ids, labels = encoded.input_ids[:max_length], encoded.labels[:max_length]
        if any(label != IGNORE for label in labels[1:]):
            columns["input_ids"].append(np.array(ids, dtype=np.int32))
            columns["labels"].append(np.array(labels, dtype=np.int32))
            cuts.append(sum(label != IGNORE for label in encoded.labels[len(labels) :]))
    _report(len(whole), cuts, max_length)
    ids = List(Value("int32"))
    return Dataset.from_dict(columns, features=Features({"input_ids": ids, "labels": ids}))


def usable(
    conversations: Sequence[Conversation], use: Callable[[Conversation], Any], skip_bad_rows: bool
) -> list[Conversation]:
    """The conversations that `use` has room for; the others are left out, and counted in the log.

    Raises:
        ValueError: one of them is not to be left out; or none is left.
    """
    return [conversation for conversation, _ in _each(conversations, use, skip_bad_rows)]


def _each(
    conversations: Sequence[_Turns], use: Callable[[_Turns], _Used], skip_bad_rows: bool
) -> list[tuple[_Turns, _Used]]:
    """Every conversation with what comes of it."""
    used: list[tuple[_Turns, _Used]] = []
    faults: list[str] = []
    for number, conversation in enumerate(conversations):
        try:
            used.append((conversation, use(conversation)))
        except BadConversation as error:
            where = getattr(conversation, "where", "") or f"conversation {number}"
            if not skip_bad_rows:
                raise BadConversation(f"{where}: {error}") from error
            faults.append(f"{where}: {error}")
    if faults and not used:
        raise ValueError(
            f"the template has no room for any of {len(faults)} rows; the first: {faults[0]}"
        )
    left_out(faults, len(conversations), "the data")
    return used


def _report(num: int, cuts: list[int], max_length: int | None) -> None:
    """Say what was dropped and cut; an error where nothing is left."""
    if not cuts:
        raise ValueError(
            f"at least one example must have an answer token within max_length={max_length}, got "
            f"none of {num}: raise max_length, or add assistant turns to the data"
        )
    dropped = num - len(cuts)
    if dropped:
        logger.warning(
            "dropped %d of %d examples: no answer token within max_length=%s",
            dropped,
            num,
            max_length,
        )
    cut = [lost for lost in cuts if lost]
    if cut:
        logger.warning(
            "cut the answers of %d of %d examples at max_length=%s: %d answer tokens are not "
            "learnt, ends of turns among them; raise max_length to keep them",
            len(cut),
            num,
            max_length,
            sum(cut),
        )


def _check_size(conversation: Sequence[Message], max_length: int | None) -> None:
    """Refuse a conversation of which next to nothing would be kept, and encoding takes minutes."""
    if max_length is None:
        return
    most = max(MOST_CHARACTERS, MOST_PER_TOKEN * max_length)
    size = sum(len(str(value)) for message in conversation for value in message.values())
    if size > most:
        raise BadConversation(
            f"a conversation must have at most {most} characters for max_length={max_length}, got "
            f"{size}, of which hardly any would be kept: cut or split it"
        )


def _check_ids(encoded: Encoded, vocab_size: int) -> None:
    largest = max(encoded.input_ids, default=0)
    if largest >= vocab_size:
        raise ValueError(
            f"every token id must be below the tokenizer's length {vocab_size}, got {largest}: the "
            "vocabulary has gaps; save the tokenizer with consecutive ids, or use the model's own"
        )
