"""Every command of a run of a recipe, from an empty folder to numbers."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from pact.common.printable import printable
from pact.recipes.data import SOURCES
from pact.recipes.recipe import Recipe

HARMFUL = ("harmbench", "strongreject", "jailbreakbench")
OVER_REFUSAL = ("xstest", "jailbreakbench-benign")
TASKS = ("gsm8k", "gsm8k-test", "sst2", "sst2-validation")
INSTALL = "pip install 'pact-kernels[method,triton]' 'lm_eval[hf]'"
PLAIN, SST2 = "plain", "trained-sst2"  # folders beside the recipe's own


class Stage(NamedTuple):
    """Some commands, and what they are for."""

    purpose: str
    commands: tuple[tuple[str, ...], ...]


def run_commands(recipe: Recipe) -> list[Stage]:
    """The commands of a whole run, in their order, in the folder that holds the recipe's files.

    Three models are evaluated alike: the aligned one, the same fine-tuned without PACT, and with
    it. SST-2 is the same again on another task.
    """
    trained = recipe.train.output_dir
    by_task = ("pact", "train", "--config", "train.yaml", "--train-file", "sst2.jsonl")
    return [
        Stage("what is public: prompts that should be refused, or answered, and tasks", _fetch()),
        Stage(
            "the aligned model's refusals, and the tokens that tell it from its base",
            (
                ("pact", "refusals", "--config", "refusals.yaml"),
                ("pact", "discover", "--config", "discover.yaml"),
                (
                    *("pact", "show", "--tokens", recipe.discover.output),
                    *("--tokenizer", recipe.train.model),
                ),
            ),
        ),
        Stage(
            "fine-tuning with PACT, and without it to compare",
            (
                ("pact", "train", "--config", "train.yaml"),
                (*("pact", "train", "--config", "train.yaml"), *_plain(PLAIN)),
            ),
        ),
        Stage("safety and over-refusal of all three models", _evaluations(recipe)),
        Stage(
            "GSM8K, by lm-eval",
            tuple(lm_eval(recipe, "gsm8k", folder, shots=5) for folder in (None, PLAIN, trained)),
        ),
        Stage(
            "the same on SST-2",
            (
                (*by_task, "--output-dir", SST2),
                (*by_task, *_plain(f"{SST2}-plain")),
                *(
                    lm_eval(recipe, "sst2", folder, shots=0)
                    for folder in (None, f"{SST2}-plain", SST2)
                ),
                *(
                    (
                        *_evaluation(recipe, folder, folder, HARMFUL[0]),
                        *("--heldout", "sst2-validation.jsonl"),
                    )
                    for folder in (f"{SST2}-plain", SST2)
                ),
            ),
        ),
    ]


def script(recipe: Recipe) -> str:
    """The commands as a shell script, with what has to be there before it."""
    hub = [recipe.discover.aligned, recipe.discover.base]
    hub += [name for name in (recipe.evaluate.judge.partition(":")[2],) if "/" in name]
    comments = [
        f"{recipe.name}: {recipe.description}. Run it in the folder of its .yaml files.",
        f"Before: {INSTALL}",
        "and `hf auth login`, with an account that has access to these models:",
        f"  {' '.join(hub)}",
    ]
    # A name with a line break would end its comment, and be run.
    lines = [
        "#!/bin/sh",
        *(f"# {' '.join(printable(c).splitlines())}" for c in comments),
        "set -eu",
    ]
    for number, stage in enumerate(run_commands(recipe), start=1):
        lines += ["", f"# {number}. {stage.purpose}", *map(shlex.join, stage.commands)]
    return "\n".join(lines) + "\n"


def lm_eval(recipe: Recipe, task: str, adapter: str | None, *, shots: int) -> tuple[str, ...]:
    """lm-eval's command for one task.

    Args:
        recipe: names the aligned model.
        task: as lm-eval calls it.
        adapter: folder of LoRA adapters; None is the aligned model itself.
        shots: examples before the question, each a turn of its own.
    """
    model = f"pretrained={recipe.train.model},dtype=bfloat16"
    if adapter is not None:
        model += f",peft={adapter}"
    turns = ("--fewshot_as_multiturn",) if shots else ()
    return (
        *("lm_eval", "--model", "hf", "--model_args", model, "--tasks", task),
        *("--num_fewshot", str(shots), "--apply_chat_template", *turns),
        *("--batch_size", "16", "--output_path", f"lm_eval/{adapter or 'aligned'}"),
    )


def _fetch() -> tuple[tuple[str, ...], ...]:
    """AdvBench comes last, without the prompts that the evaluation asks."""
    names = (*HARMFUL, *OVER_REFUSAL, *TASKS)
    assert set(names) <= SOURCES.keys()
    asked = [f"{name}.jsonl" for name in HARMFUL]
    return (
        *(("pact", "recipe", "data", name, "--output", f"{name}.jsonl") for name in names),
        ("pact", "recipe", "data", "advbench", "--output", "advbench.jsonl", "--without", *asked),
    )


def _plain(folder: str) -> tuple[str, ...]:
    return ("--method", "plain", "--output-dir", folder)


def _evaluations(recipe: Recipe) -> tuple[tuple[str, ...], ...]:
    """Every set on every model; the recipe's own evaluation is the trained model's first."""
    models = {"aligned": recipe.train.model, PLAIN: PLAIN, "trained": recipe.evaluate.model}
    return tuple(
        _evaluation(recipe, folder, model, name)
        for folder, model in models.items()
        for name in (*HARMFUL, *OVER_REFUSAL)
    )


def _evaluation(recipe: Recipe, folder: str, model: str, name: str) -> tuple[str, ...]:
    """One set on one model: of evaluate.yaml, the flags change what is not its own."""
    own = recipe.evaluate
    command = ["pact", "evaluate", "--config", "evaluate.yaml"]
    if (own.model, own.harmful) == (model, f"{name}.jsonl"):
        return tuple(command)
    command += ["--model", model, "--output-dir", f"evaluated/{folder}/{name}"]
    if name in OVER_REFUSAL:  # a guard calls nearly every answer to a harmless prompt safe
        command += ["--harmful", "none", "--benign", f"{name}.jsonl", "--judge", "keyword"]
    else:
        command += ["--harmful", f"{name}.jsonl"]
    first = name == HARMFUL[0]
    if not first:
        command += ["--heldout", "none"]
    if not first or model == recipe.train.model:  # nothing drifts from itself
        command += ["--drift", "none", "--tokens", "none"]
    return tuple(command)
