"""Every measure for which there are data, on a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pact.data.examples import Conversation
from pact.discovery import SafetyTokens
from pact.evaluation.config import BOUNDS, EvaluateConfig
from pact.evaluation.drift import measure_drift
from pact.evaluation.generate import generate_answers
from pact.evaluation.heldout import exact_match, perplexity
from pact.evaluation.intervals import Rate
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import Judge, JudgeOptions
from pact.evaluation.prompts import readable, waiting
from pact.evaluation.result import Evaluation, Generation, Refusals
from pact.models import causal_lm
from pact.reference import Reference


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    *,
    harmful: Sequence[str | Conversation] | None = None,
    benign: Sequence[str | Conversation] | None = None,
    heldout: Sequence[Conversation] | None = None,
    task: Sequence[Conversation] | None = None,
    drift: Sequence[Conversation] | None = None,
    tokens: SafetyTokens | None = None,
    reference: Reference | None = None,
    judge: str | Judge = EvaluateConfig.judge,
    max_new_tokens: int = EvaluateConfig.max_new_tokens,
    prefill: str = EvaluateConfig.prefill,
    batch_size: int = EvaluateConfig.batch_size,
    max_length: int | None = EvaluateConfig.max_length,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the data given; what has no data is None in the result.

    Args:
        model: a causal language model, with or without PEFT adapters; its mode is put back after.
        tokenizer: a fast tokenizer with a chat template.
        harmful: prompts to refuse; of a conversation, what comes before the assistant's last turn.
        benign: prompts to answer.
        heldout: conversations for loss and perplexity.
        task: conversations whose last turn is the answer to match.
        drift: conversations on whose answers the confidence in `tokens` is compared with the
            reference's.
        tokens: safety tokens, for drift.
        reference: `AdaptersOff(model)` or `FrozenModel(other)`, for drift.
        judge: a name without options, or what `make_judge` returns.
        progress: whether to show bars.

    The other settings are those of `EvaluateConfig`.

    Raises:
        ValueError: a set of data is empty, a setting is out of range, drift lacks its tokens or its
            reference, or what the model gives is not finite.
    """
    _check_numbers(max_new_tokens=max_new_tokens, batch_size=batch_size, max_length=max_length)
    _check_sets(harmful=harmful, benign=benign, heldout=heldout, task=task, drift=drift)
    if drift is not None and (tokens is None or reference is None):
        raise ValueError(
            f"drift needs safety tokens and a reference, got tokens={tokens} and "
            f"reference={reference}: give both"
        )
    settings = {
        "judge": judge if isinstance(judge, str) else _name(judge),
        "max_new_tokens": max_new_tokens,
        "prefill": prefill,
        "batch_size": batch_size,
        "max_length": max_length,
    }
    common: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    if isinstance(judge, str):
        judge = make_judge(judge, JudgeOptions(device=str(causal_lm(model).device), **common))
    loss = moved = None
    if heldout is not None:
        loss = perplexity(model, tokenizer, heldout, max_length=max_length, **common)
    if drift is not None and tokens is not None and reference is not None:
        moved = measure_drift(
            model, tokenizer, drift, tokens, reference, max_length=max_length, **common
        )
    ask = {"max_new_tokens": max_new_tokens, **common}
    unsafe = _judged(model, tokenizer, "harmful", harmful, judge, prefill=prefill, **ask)
    safe = _judged(model, tokenizer, "benign", benign, judge, **ask)
    tried = _matched(model, tokenizer, task, **common)
    return Evaluation(
        settings=settings,
        harmful=Refusals.of(unsafe) if unsafe else None,
        benign=Refusals.of(safe) if safe else None,
        heldout=loss,
        task=Rate.of(answer.verdict["exact_match"] for answer in tried) if tried else None,
        drift=moved,
        generations=(*unsafe, *safe, *tried),
    )


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and not BOUNDS[name].holds(value):
            raise ValueError(f"{name} must be {BOUNDS[name].need(value)}, got {value!r}")


def _check_sets(**sets: Sequence[Any] | None) -> None:
    for name, data in sets.items():
        if data is not None and len(data) == 0:
            raise ValueError(
                f"{name} must hold at least one example, got none: leave it out instead"
            )


def _name(judge: Judge) -> str:
    """A function's name, or the class of anything else that can be called."""
    return getattr(judge, "__name__", type(judge).__name__)


def _judged(
    model: nn.Module,
    tokenizer: Any,
    name: str,
    given: Sequence[str | Conversation] | None,
    judge: Judge,
    **settings: Any,
) -> list[Generation]:
    """Answers to one set of prompts, with their verdicts."""
    if given is None:
        return []
    prompts = [waiting(prompt) for prompt in given]
    answers = generate_answers(model, tokenizer, prompts, **settings)
    return [
        Generation(set=name, prompt=readable(prompt), answer=answer, verdict=verdict._asdict())
        for prompt, answer, verdict in zip(prompts, answers, judge(prompts, answers), strict=True)
    ]


def _matched(
    model: nn.Module, tokenizer: Any, task: Sequence[Conversation] | None, **settings: Any
) -> list[Generation]:
    """Answers to the prompts of the task, compared with those expected."""
    if task is None:
        return []
    found = exact_match(model, tokenizer, task, **settings)
    return [
        Generation(
            set="task",
            prompt=readable(turns[:-1]),
            answer=answer,
            verdict={"exact_match": match},
            expected=turns[-1]["content"],
        )
        for turns, answer, match in zip(task, found.answers, found.matches, strict=True)
    ]
