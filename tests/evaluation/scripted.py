"""A tiny model that says what it is told to, for tests of what is done with answers."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import tiny_llama, tiny_tokenizer


def scripted_llama(answer: str) -> Any:
    """A tiny Llama whose greedy answer to any prompt is `answer`, then the end of the turn.

    Its states and its loss on given answers are the plain model's up to the forced logits.
    """
    tokenizer = tiny_tokenizer()
    script = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    model = tiny_llama()
    model.steps = 0

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        prompt = kwargs["input_ids"].shape[1] > 1
        model.steps = 0 if prompt else model.steps + 1

    def force(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        token = script[min(model.steps, len(script) - 1)]
        return logits.index_fill(-1, torch.tensor([token]), 1e4)  # far above any logit of the model

    model.register_forward_pre_hook(count, with_kwargs=True)
    model.lm_head.register_forward_hook(force)
    return model
