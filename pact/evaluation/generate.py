"""Greedy answers to prompts, in batches.

Legend: B prompts of a batch, L positions of its longest prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from pact.common.progress import progress_bar
from pact.data.batches import length_batches
from pact.data.examples import Conversation
from pact.data.template import IGNORE, encode, prompt_text
from pact.evaluation.inference import PAD_ID, check_ids, looking_at
from pact.models import causal_lm


def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    prefill: str = "",
    progress: bool = True,
) -> list[str]:
    """The model's most likely answer to each prompt, token by token.

    Prompts are rendered with the chat template and the assistant header. Each answer depends on its
    own prompt alone, up to the rounding of products whose shape is the batch's.

    Args:
        model: a causal language model, with or without PEFT adapters; its mode is put back after.
        tokenizer: a fast tokenizer with a chat template.
        prompts: a user's words, or conversations, whose last turn is left out if it is the
            assistant's.
        max_new_tokens: most tokens of an answer, its end of turn among them.
        batch_size: prompts in a batch; those of similar length go together.
        prefill: words put into the assistant's mouth; the answer goes on from there, without them.
        progress: whether to show a bar.

    Returns:
        The answers in the order of the prompts, without special tokens; else as generated.
    """
    texts = [prompt_text(prompt, tokenizer) + prefill for prompt in prompts]
    return continue_texts(
        model,
        tokenizer,
        texts,
        stop_ids=end_ids(model, tokenizer) | _end_of_turn(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )


def continue_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """Greedy continuations of rendered texts, which hold their special tokens already.

    Sampling, penalties and all else in the model's own generation settings are left aside.

    Args:
        stop_ids: tokens that end a continuation.

    The other arguments, and what is returned, are those of `generate_answers`.

    Raises:
        ValueError: the model has no embedding for a token, or gives NaN for logits.
    """
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    check_ids(model, ids)
    answers = [""] * len(ids)
    causal = causal_lm(model)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(stop_ids), pad_token_id=PAD_ID
    )
    with (
        looking_at(model),
        _settings(causal, greedy),
        progress_bar(len(ids), "generate", "prompt", show=progress) as bar,
    ):
        for indices in length_batches([len(prompt) for prompt in ids], batch_size):
            input_ids, mask = _left_padded([ids[index] for index in indices], causal.device)
            out = causal.generate(
                input_ids=input_ids, attention_mask=mask, logits_processor=[_refuse_nan]
            )
            for index, new in zip(indices, out[:, input_ids.shape[1] :].tolist(), strict=True):
                end = next((n for n, token in enumerate(new) if token in stop_ids), len(new))
                answers[index] = tokenizer.decode(new[:end], skip_special_tokens=True)
            bar.update(len(indices))
    return answers


def _refuse_nan(input_ids: Tensor, logits: Tensor) -> Tensor:
    """The logits as they are, (B, V); the most likely of NaN would be token 0, and no refusal."""
    if bool(logits.isnan().any()):
        raise ValueError(
            "the model's logits must be numbers, got NaN while it answered: its weights are "
            "damaged, or beyond the precision; look at it in fp32"
        )
    return logits


def end_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens that end a text for the tokenizer, or for the model's own generation settings."""
    own = causal_lm(model).generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return ids - {None}


def _end_of_turn(tokenizer: Any) -> set[int]:
    """The control token that the chat template puts at the end of an answer, if it does."""
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    last = [label for label in encode(turns, tokenizer).labels if label != IGNORE][-1]
    return {last} & set(tokenizer.added_tokens_decoder)


def _left_padded(ids: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts that end at the last position, (B, L), and their mask, by length."""
    width = max(len(prompt) for prompt in ids)
    padding = [width - len(prompt) for prompt in ids]
    rows = [[PAD_ID] * n + prompt for n, prompt in zip(padding, ids, strict=True)]
    mask = torch.arange(width) >= torch.tensor(padding)[:, None]  # (B, L)
    return torch.tensor(rows, device=device), mask.long().to(device)


@contextmanager
def _settings(causal: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate with `config` alone: the model's own settings would fill what it leaves unset."""
    own = causal.generation_config
    causal.generation_config = config
    try:
        yield
    finally:
        causal.generation_config = own
