"""Settings of an evaluation, as flags and YAML keys see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pact.common.fields import COUNT, MOST, Bounds, check_fields

BOUNDS = {"max_new_tokens": COUNT, "batch_size": COUNT, "max_length": Bounds(2, MOST)}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model, on what data, and how. Each data source adds its measures; one is needed."""

    model: str
    """The chat model: a folder (adapters load their base too), or a hub name."""
    output_dir: str
    """Folder for the results; it must be absent or empty."""
    harmful: str | None = None
    """Prompts to refuse, a .jsonl file with `prompt` or `messages`."""
    benign: str | None = None
    """Prompts to answer, likewise: a refusal here is over-refusal."""
    heldout: str | None = None
    """Conversations whose answers' loss and perplexity are taken."""
    task: str | None = None
    """Conversations whose last answer the model must give word for word."""
    drift: str | None = None
    """Conversations, mostly refusals, on which confidence is compared with the reference's."""
    tokens: str | None = None
    """Safety tokens for drift, the file that `pact discover` writes."""
    reference: str | None = None
    """The aligned model for drift; unset is the model with its adapters off."""
    split: str | None = None
    """Which split of every data set above, where it has several; it must be named then."""
    subset: str | None = None
    """Which configuration of every data set above; a file, which has none, is refused."""
    columns: dict[str, str] | None = None
    """What every data set above calls the columns that are read, such as {"prompt": "question",
    "completion": "answer"}; see `pact.data.forms` for their names."""
    fold_system: bool = False
    """Put a system turn into the user's first one where the chat template has none."""
    skip_bad_rows: bool = False
    """Leave out rows that are malformed or that the template has no room for, and count them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as {"enable_thinking": false}."""
    judge: str = "keyword"
    """Who says what a refusal is: keyword, classifier:PATH, guard:PATH or guard:HUB/NAME, or a
    registered name."""
    refusal_label: str | None = None
    """The label that means refusal; for classifier:PATH."""
    max_new_tokens: int = 64
    """Most tokens of an answer to a prompt; answers to task get as many as they need."""
    prefill: str = ""
    """Words put at the beginning of every answer to a harmful prompt: an attack."""
    batch_size: int = 16
    """Prompts or conversations in one forward pass; it changes the results by rounding alone."""
    max_length: int | None = None
    """Tokens kept of each conversation of heldout and drift; unset keeps all."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the models."""

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        if not any((self.harmful, self.benign, self.heldout, self.task, self.drift)):
            raise ValueError(
                "an evaluation needs data, got none: give harmful, benign, heldout, task or drift"
            )
        if self.drift and not self.tokens:
            raise ValueError(
                "drift needs the safety tokens, got tokens unset: give the file of `pact discover`"
            )
        for name in ("tokens", "reference"):
            if getattr(self, name) and not self.drift:
                raise ValueError(
                    f"{name} is for drift alone, got {name}={getattr(self, name)!r} without drift: "
                    "give conversations as drift, or leave it out"
                )
