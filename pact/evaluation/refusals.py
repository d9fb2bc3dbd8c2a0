"""The refusals that an aligned model gives: the data in which discovery looks for safety tokens."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pact.common.fields import COUNT, check_fields
from pact.common.outputs import check_new_file, whole_file
from pact.common.settings import user_path
from pact.data.conversation import Conversation
from pact.data.dataset import usable
from pact.data.folding import folding
from pact.data.template import prompt_text
from pact.evaluation.config import EvaluateConfig
from pact.evaluation.generate import generate_answers
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import JudgeOptions
from pact.evaluation.prompts import load_prompts
from pact.models import check_head
from pact.models.loading import load_model, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RefusalsConfig:
    """Which model to ask what, and who says what a refusal is."""

    model: str
    """The aligned chat model: a folder, or a hub name."""
    prompts: str
    """Harmful prompts, rows with `prompt`, `messages` or another form of `pact.data.forms`: .jsonl,
    .json, .csv, .parquet, a folder of them, a saved data set, or a hub name."""
    output: str
    """The .jsonl file of conversations to write, each a prompt and its refusal."""
    keep: Literal["refusals", "all"] = "refusals"
    """refusals: the answers that refuse, for discovery and for `refusals` of `pact train`; all:
    every answer, for its `anchors`, which want harmless prompts too. Then no judge is asked."""
    overwrite: bool = False
    """Replace the output if it is there."""
    split: str | None = None
    """Which split of prompts, where it has several; it must be named then."""
    subset: str | None = None
    """Which configuration of a data set that has several."""
    columns: dict[str, str] | None = None
    """What the data call the columns that are read, such as {"prompt": "question"}; see
    `pact.data.forms` for their names."""
    fold_system: bool = False
    """Put a system turn into the user's first one where the chat template has none."""
    skip_bad_rows: bool = False
    """Leave out rows that are malformed or that the template has no room for, and count them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as {"enable_thinking": false}."""
    judge: str = EvaluateConfig.judge
    """Who says what a refusal is: keyword, classifier:PATH, guard:PATH or guard:HUB/NAME, or a
    registered name."""
    refusal_label: str | None = None
    """The label that means refusal; for classifier:PATH."""
    max_new_tokens: int = 64
    """Most tokens of an answer; discovery reads no more than its max_response_length."""
    batch_size: int = EvaluateConfig.batch_size
    """Prompts in one forward pass."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the models."""

    def __post_init__(self) -> None:
        check_fields(self, {"max_new_tokens": COUNT, "batch_size": COUNT})
        if Path(self.output).suffix != ".jsonl":
            raise ValueError(f"output must be a .jsonl file, got {self.output!r}")
        judged = self.judge != RefusalsConfig.judge or self.refusal_label is not None
        if self.keep == "all" and judged:
            raise ValueError(
                f"keep=all asks no judge, got {self.judge}: leave judge and refusal_label unset, "
                "or keep refusals"
            )


def write_refusals(config: RefusalsConfig) -> tuple[int, int]:
    """Ask the model, and keep the prompts whose answers refuse from the start, or all, with them.

    An answer that is cut at max_new_tokens is kept as it is: discovery reads beginnings.

    Returns:
        How many conversations were written, and how many prompts were asked.

    Raises:
        ValueError: the output exists, the prompts, the judge or a model are missing (before a model
            is loaded), or no answer refuses.
    """
    output = user_path(config.output)
    check_new_file(output, overwrite=config.overwrite, inputs={"prompts": config.prompts})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = JudgeOptions(
        refusal_label=config.refusal_label,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=device,
    )
    judge = make_judge(config.judge, options) if config.keep == "refusals" else None
    prompts = load_prompts(
        config.prompts,
        split=config.split,
        subset=config.subset,
        columns=config.columns,
        skip_bad_rows=config.skip_bad_rows,
    )
    tokenizer = load_tokenizer(config.model, config.chat_template_kwargs)
    fold = folding(tokenizer, config.fold_system)
    # What the template refuses is an error now rather than later.
    prompts = usable(
        prompts, lambda turns: prompt_text(fold(turns), tokenizer), config.skip_bad_rows
    )
    prompts = [fold(turns) for turns in prompts]
    model = load_model(config.model, dtype=config.dtype, merge_adapters=True).to(device)
    check_head(model)
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    kept = [True] * len(prompts)
    if judge is not None:
        kept = [verdict.starts_with_refusal for verdict in judge(prompts, answers)]
    asked = zip(prompts, answers, kept, strict=True)
    lines = [json.dumps(_row(turns, answer)) for turns, answer, is_kept in asked if is_kept]
    if not lines:
        raise ValueError(
            f"at least one answer must refuse, got none of {len(prompts)} by {config.judge}: "
            f"{config.model} is not aligned, the prompts are harmless, or another judge is needed"
        )
    with whole_file(output) as partial:
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    of_kind = "refuse from the start" if judge else "are kept, whatever they say"
    logger.info("%d of %d answers %s", len(lines), len(prompts), of_kind)
    return len(lines), len(prompts)


def _row(turns: Conversation, answer: str) -> dict[str, Any]:
    """A prompt and its refusal, with what the prompt's row says of its rendering."""
    row: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": answer}]}
    if turns.tools:
        row["tools"] = turns.tools
    if turns.template_kwargs:
        row["chat_template_kwargs"] = turns.template_kwargs
    return row
