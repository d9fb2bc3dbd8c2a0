"""How models are trained here, by `pact.training.loop.fit`: to refuse, and in every cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pact.data.collate import Collator
from pact.data.template import header_ids
from pact.objective import Objective
from pact.reference import Reference
from pact.training.config import FitConfig
from pact.training.loop import fit


def train(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    objective: Objective,
    reference: Reference | None = None,
    after_step: Callable[[int], None] | None = None,
    **settings: Any,
) -> None:
    """Train what is trainable in `model`, in place; `settings` are those of `FitConfig`."""
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=objective.needs_post_only)
    config = FitConfig(warmup_ratio=0.1, save_every=None, **settings)
    held_to = reference if objective.needs_reference else None
    fit(model, dataset, objective, held_to, collator, config, after_step=after_step)
