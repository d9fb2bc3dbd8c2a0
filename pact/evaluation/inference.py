"""Running a model to look at it: its mode, and its hidden states on the answer rows.

Legend: N answer rows of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pact.data.batches import length_batches
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.models import causal_lm, hidden_states
from pact.progress import progress_bar

PAD_ID = 0
"""Fills padding, which the attention mask hides: any id of the vocabulary does."""


class AnswerBatch(NamedTuple):
    """Some of the conversations, and what the model makes of them."""

    inputs: dict[str, Tensor]
    """As `pact.data.collate.Collator` makes it, on the model's device, without post-only inputs."""
    hidden: Tensor
    """(N, D) the states that predict the answer tokens."""


@contextmanager
def looking_at(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def answer_batches(
    model: nn.Module,
    tokenizer: object,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    max_length: int | None,
    title: str,
    progress: bool,
) -> Iterator[AnswerBatch]:
    """Run the backbone over conversations, in batches of similar length.

    Args:
        model: a causal language model, already in the mode it is to run in.
        tokenizer: a fast tokenizer with a chat template.
        conversations: those without an answer token are left out, and counted in the log.
        batch_size: conversations in a batch.
        max_length: tokens kept of each conversation, from its beginning; None keeps all.
        title: what the progress bar calls the work.
        progress: whether to show the bar.
    """
    encoded = encode_examples(conversations, tokenizer, max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    collate = Collator((), PAD_ID, post_only=False)
    device = causal_lm(model).device
    with progress_bar(len(lengths), title, "conversation", show=progress) as bar:
        for indices in length_batches(lengths, batch_size):
            collated = collate([encoded[index] for index in indices])
            inputs = {name: value.to(device) for name, value in collated.items()}
            states = hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
            yield AnswerBatch(inputs, states[inputs["row_sequence"], inputs["row_position"]])
            bar.update(len(indices))
