"""All conversations as one Arrow table of token ids and labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pact.data.examples import Conversation
from pact.data.spans import IGNORE
from pact.data.template import Encoded, encode

logger = logging.getLogger(__name__)


def encode_examples(
    conversations: Sequence[Conversation], tokenizer: Any, max_length: int | None
) -> Dataset:
    """Encode conversations; one with nothing left to predict is dropped, and counted in the log.

    Args:
        conversations: as `pact.data.examples.load_examples` returns them.
        tokenizer: a fast tokenizer with a chat template.
        max_length: tokens kept of each, from the left; None keeps all.

    Returns:
        A data set with the columns `input_ids` and `labels`, lists of int32.

    Raises:
        ValueError: no example has an answer token within max_length; an id is not below the
            tokenizer's length; or `encode` raises one.
    """
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    for conversation in conversations:
        encoded = encode(conversation, tokenizer, max_length=max_length)
        _check_ids(encoded, len(tokenizer))
        if any(label != IGNORE for label in encoded.labels[1:]):
            columns["input_ids"].append(np.array(encoded.input_ids, dtype=np.int32))
            columns["labels"].append(np.array(encoded.labels, dtype=np.int32))
    kept = len(columns["labels"])
    if kept == 0:
        raise ValueError(
            f"at least one example must have an answer token within max_length={max_length}, got "
            f"none of {len(conversations)}: raise max_length, or add assistant turns to the data"
        )
    if kept < len(conversations):
        logger.warning(
            "dropped %d of %d examples: no answer token within max_length=%s",
            len(conversations) - kept,
            len(conversations),
            max_length,
        )
    ids = List(Value("int32"))
    return Dataset.from_dict(columns, features=Features({"input_ids": ids, "labels": ids}))


def _check_ids(encoded: Encoded, vocab_size: int) -> None:
    largest = max(encoded.input_ids, default=0)
    if largest >= vocab_size:
        raise ValueError(
            f"every token id must be below the tokenizer's length {vocab_size}, got {largest}: the "
            "vocabulary has gaps; save the tokenizer with consecutive ids, or use the model's own"
        )
