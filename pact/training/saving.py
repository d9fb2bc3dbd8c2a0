"""A trained model on disk: a folder that loads as the model that was trained, and stops as it does.

adapters                adapter_model.safetensors, their base by its path, or in base/ if it is
                        in no other place: adapters that were merged on loading
all weights             model.safetensors
generation_config.json  with the token that ends a turn among those that end generation
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from pact.data.template import end_of_turn_ids
from pact.models import causal_lm
from pact.models.loading import OWN_BASE

logger = logging.getLogger(__name__)


def save_trained(model: Any, tokenizer: Any, folder: Path, *, keep_base: bool) -> None:
    """Write model, tokenizer and generation settings into an existing folder.

    Args:
        model: what was trained, with or without adapters.
        tokenizer: its tokenizer.
        folder: the run's.
        keep_base: write the base of adapters, too, since it is on no disk as it is.
    """
    causal = causal_lm(model)
    stop_at_turns(model, tokenizer)
    has_adapters = hasattr(model, "peft_config")
    if has_adapters and keep_base:
        base = (folder / OWN_BASE).resolve()
        causal.save_pretrained(base, state_dict=_base_state(causal, model))
        save_tokenizer(tokenizer, base)
        for adapters in model.peft_config.values():
            adapters.base_model_name_or_path = str(base)
        logger.info("the base of the adapters, merged when it was loaded, is kept in %s", base)
    model.save_pretrained(folder)
    if has_adapters:
        causal.generation_config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer.

    Raises:
        OSError: there is no room, which the tokenizers library calls an Exception.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise


def stop_at_turns(model: Any, tokenizer: Any) -> None:
    """Let a model's generation settings end where its template ends a turn, too."""
    causal = causal_lm(model)
    if tokenizer.chat_template and tokenizer.is_fast:
        causal.generation_config = stopping(causal.generation_config, end_of_turn_ids(tokenizer))


def stopping(own: GenerationConfig | None, ends: set[int]) -> GenerationConfig:
    """Generation settings that stop at these tokens, too; all else is as it was.

    Sampling settings without sampling, which transformers warns of and does not save, sample.
    """
    config = GenerationConfig() if own is None else GenerationConfig.from_dict(own.to_dict())
    before = config.eos_token_id
    known = before if isinstance(before, list) else [] if before is None else [before]
    missing = sorted(ends - set(known))
    if missing:
        both = [*known, *missing]
        config.eos_token_id = both[0] if len(both) == 1 else both
    try:
        config.validate(strict=True)
    except ValueError:  # a temperature without sampling, for one: kept by letting it count
        config.do_sample = True
    return config


def _base_state(causal: Any, model: Any) -> dict[str, Any]:
    """The weights below the adapters, by the names that the model has without them."""
    prefixes = tuple(model.base_model.prefix.split(","))
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in causal.state_dict().items()
        if not any(prefix in name for prefix in prefixes)
    }
