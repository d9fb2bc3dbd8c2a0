"""The printed commands are ours: their flags parse, and each reads what one before it wrote."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pact.cli.arguments import parse
from pact.discovery import DiscoverConfig
from pact.evaluation import EvaluateConfig
from pact.evaluation.refusals import RefusalsConfig
from pact.objective import PactConfig
from pact.recipes.commands import lm_eval, run_commands, script
from pact.recipes.data import DataConfig
from pact.recipes.recipe import Recipe, write_configs
from pact.training.config import TrainConfig

CONFIGS = {
    "refusals": [RefusalsConfig],
    "discover": [DiscoverConfig],
    "train": [TrainConfig, PactConfig],
    "evaluate": [EvaluateConfig],
}


def _parsed(recipe: Recipe, folder: Path) -> list[tuple[str, Any]]:
    """Command -> its first config, in their order; those of lm-eval and `show` as their words."""
    found: list[tuple[str, Any]] = []
    for stage in run_commands(recipe):
        for program, command, *rest in stage.commands:
            rest = [str(folder / word) if word.endswith(".yaml") else word for word in rest]
            if program == "lm_eval" or command == "show":
                found.append((program if program == "lm_eval" else command, rest))
            elif command == "recipe":
                assert rest[0] == "data"
                argv = ["--name", *rest[1:]]
                found.append(("data", parse("data", [DataConfig], argv, summary="fetch")[0]))
            else:
                assert program == "pact"
                found.append((command, parse(command, CONFIGS[command], rest)[0]))
    return found


@pytest.fixture
def parsed(recipe: Recipe, tmp_path: Path) -> list[tuple[str, Any]]:
    write_configs(recipe.name, tmp_path)
    return _parsed(recipe, tmp_path)


def test_each_command_reads_what_one_before_it_wrote(parsed: list[tuple[str, Any]]) -> None:
    """From an empty folder to the end, without a gap."""
    there: set[str] = set()
    read: set[str] = set()
    for command, config in parsed:
        inputs: dict[str, list[str | None]] = {
            "data": [*getattr(config, "without", ())],
            "refusals": [getattr(config, "prompts", None)],
            "discover": [getattr(config, "data", None)],
            "train": [getattr(config, n, None) for n in ("train_file", "tokens")],
            "evaluate": [
                getattr(config, n, None)
                for n in ("harmful", "benign", "heldout", "task", "drift", "tokens")
            ],
        }
        needed = {path for path in inputs.get(command, []) if path}
        if command == "evaluate" and "/" not in config.model:
            needed.add(config.model)
        assert needed <= there, f"{command} reads {needed - there}, which nothing wrote"
        read |= needed
        made = getattr(config, "output", None) or getattr(config, "output_dir", None)
        assert made not in there  # no command refuses because its output is there
        there |= {made} if made else set()
    fetched = {config.output for command, config in parsed if command == "data"}
    assert fetched <= read  # and nothing is fetched in vain


def test_three_models_are_evaluated_alike(recipe: Recipe, parsed: list[tuple[str, Any]]) -> None:
    runs = [c for command, c in parsed if command == "evaluate" and "sst2" not in c.model]
    by_model: dict[str, set[tuple[str | None, str | None, str]]] = {}
    for config in runs:
        asked = (config.harmful, config.benign, config.judge)
        by_model.setdefault(config.model, set()).add(asked)
    assert by_model.keys() == {recipe.train.model, "plain", "trained"}
    assert by_model["trained"] == by_model["plain"] == by_model[recipe.train.model]
    assert len(by_model["trained"]) == 5
    for harmful, benign, judge in by_model["trained"]:
        assert (harmful is None) != (benign is None)
        assert judge == ("keyword" if benign else recipe.evaluate.judge)
    assert {config.model for config in runs if config.drift} == {"plain", "trained"}
    assert recipe.evaluate in runs


def test_trained_with_and_without(recipe: Recipe, parsed: list[tuple[str, Any]]) -> None:
    runs = [config for command, config in parsed if command == "train"]
    assert runs[0] == recipe.train
    assert [(c.method, c.train_file) for c in runs] == [
        ("pact", "gsm8k.jsonl"),
        ("plain", "gsm8k.jsonl"),
        ("pact", "sst2.jsonl"),
        ("plain", "sst2.jsonl"),
    ]
    assert len({config.output_dir for config in runs}) == 4


def test_lm_eval_takes_the_adapters(recipe: Recipe) -> None:
    command = shlex.join(lm_eval(recipe, "gsm8k", "trained", shots=5))
    assert command == (
        f"lm_eval --model hf --model_args pretrained={recipe.train.model},dtype=bfloat16,"
        "peft=trained --tasks gsm8k --num_fewshot 5 --apply_chat_template --fewshot_as_multiturn "
        "--batch_size 16 --output_path lm_eval/trained"
    )
    alone = lm_eval(recipe, "sst2", None, shots=0)
    assert alone[4] == f"pretrained={recipe.train.model},dtype=bfloat16"
    assert "--fewshot_as_multiturn" not in alone  # there are no turns before the question
    asked = [c for stage in run_commands(recipe) for c in stage.commands if c[0] == "lm_eval"]
    assert [c[c.index("--tasks") + 1] for c in asked] == ["gsm8k"] * 3 + ["sst2"] * 3


def test_the_script_is_the_commands(recipe: Recipe) -> None:
    lines = script(recipe).splitlines()
    commands = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    stages = run_commands(recipe)
    assert commands == [["set", "-eu"], *(list(c) for stage in stages for c in stage.commands)]
    assert (
        f"#   {recipe.discover.aligned} {recipe.discover.base} meta-llama/Llama-Guard-3-8B" in lines
    )


def test_no_name_in_a_recipe_becomes_a_command(recipe: Recipe) -> None:
    """A comment ends with its line, and quotes hold the rest."""
    name = "mine/model\nrm -rf $(here) `there`"
    parts = {"refusals": replace(recipe.refusals, model=name)}
    parts |= {"discover": replace(recipe.discover, aligned=name, base=name)}
    parts |= {"train": replace(recipe.train, model=name)}
    wild = replace(recipe, name=f"{name}.yaml", **parts)
    text = script(wild)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    assert name in words  # whole, as one word
    assert "rm" not in words and "-rf" not in words
    lines = [line for line in text.splitlines() if line.startswith("#")]
    assert any("rm -rf" in line for line in lines)
