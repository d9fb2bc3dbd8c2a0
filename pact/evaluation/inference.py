"""Running a model to look at it: its mode, and its hidden states on the answer rows.

Legend: N answer rows of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pact.common.progress import progress_bar
from pact.data.batches import length_batches
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.models import causal_lm, hidden_states

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

    Raises:
        ValueError: the model has no embedding for a token, or gives states that are not finite.
    """
    encoded = encode_examples(conversations, tokenizer, max_length)
    check_ids(model, encoded["input_ids"])
    lengths = [len(ids) for ids in encoded["input_ids"]]
    collate = Collator((), PAD_ID, post_only=False)
    device = causal_lm(model).device
    with progress_bar(len(lengths), title, "conversation", show=progress) as bar:
        for indices in length_batches(lengths, batch_size):
            collated = collate([encoded[index] for index in indices])
            inputs = {name: value.to(device) for name, value in collated.items()}
            states = hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
            rows = states[inputs["row_sequence"], inputs["row_position"]]  # (N, D)
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"the model's states must be finite, got NaN or infinity in {title}: its "
                    "weights are damaged, or beyond the precision; look at it in fp32"
                )
            yield AnswerBatch(inputs, rows)
            bar.update(len(indices))


def check_ids(model: nn.Module, sequences: Iterable[Sequence[int]]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        ValueError: there are such, so the tokenizer is another model's, or has more tokens.
    """
    vocabulary = causal_lm(model).get_input_embeddings().weight.shape[0]
    largest = max((max(ids, default=0) for ids in sequences), default=0)
    if largest >= vocabulary:
        raise ValueError(
            f"every token id must be below the model's vocabulary of {vocabulary}, got {largest}: "
            "its folder holds another model's tokenizer, or it lacks embeddings for added tokens "
            "(resize_token_embeddings)"
        )
