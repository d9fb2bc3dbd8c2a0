"""All stages of a recipe on a tiny random model of its family: every setting accepted together.

Replaced are what is named (models, files, judges: a random model's answers are not refusals) and
what is large (tokens of an answer, the data); every other setting is the recipe's. Nothing is
learnt and nothing is measured by it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pact.discovery import SafetyTokens, run_discover
from pact.evaluation import Evaluation, run_evaluate
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import JudgeOptions
from pact.evaluation.refusals import write_refusals
from pact.recipes.recipe import Recipe
from pact.recipes.tiny import HIDDEN_SIZE, LAYERS, save_guard, save_tiny
from pact.training.run import TrainResult, train

REQUESTS = ("bake bread", "tie a bow tie", "grow basil", "fold a map")
PROMPTS = [f"How do I {request}{end}" for request in REQUESTS for end in ("?", ", please?")]
ANSWER = "Begin early, take your time, and look at the picture."
DATA = ("harmful", "benign", "heldout", "task", "drift")
MAX_NEW_TOKENS = 8


class DryRun(NamedTuple):
    """What the stages gave back."""

    refusals: int
    tokens: SafetyTokens
    training: TrainResult
    evaluation: Evaluation


def dry_run(recipe: Recipe, folder: Path) -> DryRun:
    """Run a recipe's stages in an empty folder, each on what the one before it wrote.

    Raises:
        ValueError: a setting is refused by its stage.
    """
    sizes = recipe.architecture
    aligned = save_tiny(sizes, folder / "aligned", seed=0)
    base = save_tiny(sizes, folder / "base", seed=1)
    judge = "guard:" + save_guard(sizes, folder / "guard")
    if ":" not in recipe.refusals.judge:
        make_judge(recipe.refusals.judge, JudgeOptions())  # its name is all that is looked at
    prompts, conversations = _write_data(folder)
    refusals, tokens = str(folder / "refusals.jsonl"), str(folder / "tokens.safetensors")
    trained = str(folder / "trained")

    written, _ = write_refusals(
        replace(
            recipe.refusals,
            model=aligned,
            prompts=prompts,
            output=refusals,
            judge=judge,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    )
    found = run_discover(
        replace(recipe.discover, aligned=aligned, base=base, data=refusals, output=tokens)
    )
    result = train(
        replace(
            recipe.train,
            model=aligned,
            train_file=conversations,
            tokens=tokens,
            output_dir=trained,
            cache_dir=str(folder / "cache"),
        ),
        recipe.pact,
    )
    sources = dict(
        zip(DATA, (prompts, prompts, conversations, conversations, refusals), strict=True)
    )
    used: dict[str, Any] = {n: path for n, path in sources.items() if getattr(recipe.evaluate, n)}
    evaluation = run_evaluate(
        replace(
            recipe.evaluate,
            model=trained,
            output_dir=str(folder / "evaluated"),
            **used,
            tokens=tokens if recipe.evaluate.tokens else None,
            reference=aligned if recipe.evaluate.reference else None,
            judge=judge if ":" in recipe.evaluate.judge else recipe.evaluate.judge,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    )
    return DryRun(written, found, result, evaluation)


def dry_run_report(recipe: Recipe, run: DryRun) -> str:
    """One line a stage."""
    last = run.training.records[-1]
    lines = [
        f"{recipe.name} on a random {recipe.architecture.model_type} of {LAYERS} layers, hidden "
        f"size {HIDDEN_SIZE}",
        f"refusals  {run.refusals} of {len(PROMPTS)} answers, by a guard that calls all safe",
        f"discover  {run.tokens.ids.numel()} safety tokens",
        f"train     {last['step']:.0f} steps, cross-entropy {last['cross_entropy']:.2f}, "
        f"KL {last['kl']:.4f}, gate {last['gate']:.2f}",
        f"evaluate  {len(run.evaluation.generations)} answers",
        "Every setting is accepted; nothing was learnt, and nothing measured.",
    ]
    return "\n".join(lines) + "\n"


def _write_data(folder: Path) -> tuple[str, str]:
    """Files of prompts and of conversations."""
    prompts = [{"prompt": prompt} for prompt in PROMPTS]
    conversations = [{**line, "completion": ANSWER} for line in prompts]
    paths = folder / "prompts.jsonl", folder / "conversations.jsonl"
    for path, rows in zip(paths, (prompts, conversations), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(paths[0]), str(paths[1])
