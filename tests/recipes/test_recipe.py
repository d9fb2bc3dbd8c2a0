"""Each config parses, says what the paper says, and is refused where it is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from pact.cli.arguments import parse
from pact.evaluation.judges import guard
from pact.objective import PactConfig
from pact.recipes.recipe import (
    COMMANDS,
    Recipe,
    load_recipe,
    recipe_names,
    recipe_text,
    write_configs,
)
from tests.recipes.conftest import NAMES

PAPER: dict[str, dict[str, Any]] = {
    "discover": {"top_k": 50, "num_samples": 512, "max_response_length": 64, "mode": "p_diff"},
    "train": {
        "method": "pact",
        "learning_rate": 3e-5,
        "epochs": 3,
        "batch_size": 8,
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_targets": ("q_proj", "v_proj"),
        "full_finetuning": False,
    },
    "pact": {
        "over": "selection",
        "kl_weight": 1.0,
        "kl_temperature": 2.0,
        "kl_step_tau": math.inf,
        "kl_margin": 0.0,
        "positive_only": False,
        "anchors_only": False,
        "gate": True,
        "gate_top_p": 0.9,
        "gate_alpha": 2.0,
        "gate_bias": 0.0,
        "gate_temperature": 1.0,
        "gate_prefix_length": 8,
        "gate_decay_tau": 8.0,
        "gate_prefix_boost": 1.0,
    },
}
PARAMETERS = {"gemma-2-9b": 9.24e9, "llama-3.1-8b": 8.03e9, "qwen2.5-7b": 7.62e9}


def test_the_package_has_these() -> None:
    assert tuple(recipe_names()) == NAMES == tuple(PARAMETERS)


def test_a_recipe_has_the_papers_settings(recipe: Recipe) -> None:
    for section, settings in PAPER.items():
        found = getattr(recipe, section)
        assert {name: getattr(found, name) for name in settings} == settings


def test_a_recipe_spells_the_objective_out(recipe: Recipe) -> None:
    """A new default of the package changes no recipe."""
    written = yaml.safe_load(recipe_text(recipe.name))["train"]
    assert PAPER["pact"].keys() <= written.keys()
    assert PAPER["pact"].keys() == PactConfig.__dataclass_fields__.keys()


def test_all_of_it_runs_in_bf16_on_an_aligned_model_and_its_base(recipe: Recipe) -> None:
    stages = (recipe.refusals, recipe.discover, recipe.train, recipe.evaluate)
    assert [stage.dtype for stage in stages] == ["bf16"] * 4
    aligned, base = recipe.discover.aligned, recipe.discover.base
    assert aligned in (f"{base}-Instruct", f"{base}-it")
    assert recipe.evaluate.judge == "guard:meta-llama/Llama-Guard-3-8B"


def test_the_number_of_weights_is_the_models(recipe: Recipe) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(recipe.architecture.config())
    assert sum(p.numel() for p in model.parameters()) == recipe.architecture.num_parameters
    assert recipe.architecture.num_parameters == pytest.approx(PARAMETERS[recipe.name], rel=5e-3)


def test_gemma_is_the_one_with_caps_and_a_wide_vocabulary() -> None:
    gemma = load_recipe("gemma-2-9b").architecture
    assert (gemma.final_logit_softcapping, gemma.attn_logit_softcapping) == (30.0, 50.0)
    assert (gemma.vocab_size, gemma.tie_word_embeddings) == (256000, True)
    assert gemma.config().final_logit_softcapping == 30.0


def test_the_commands_read_what_is_written(recipe: Recipe, tmp_path: Path) -> None:
    paths = write_configs(recipe.name, tmp_path / "run")
    assert [path.stem for path in paths] == list(COMMANDS)
    read = [
        config
        for path in paths
        for config in parse(path.stem, COMMANDS[path.stem], ["--config", str(path)])
    ]
    assert read == [
        recipe.refusals,
        recipe.discover,
        recipe.train,
        recipe.pact,
        recipe.evaluate,
    ]
    with pytest.raises(ValueError, match="must hold no refusals.yaml"):
        write_configs(recipe.name, tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("discover", {"topk": 5}, "unknown key 'topk' in section discover .*nearest is 'top_k'"),
        ("train", {"lora_r": 0}, "section train of mine.yaml: lora_r must be at least 1, got 0"),
        ("train", {"gate": 1}, "gate in section train of mine.yaml must be bool, got 1"),
        ("train", {"model": None}, "model in section train .* must be str, got None"),
        ("train", {"tokens": "other"}, "train.tokens must be discover.output='tokens.safetens"),
        ("evaluate", {"model": "x"}, "evaluate.model must be train.output_dir='trained', got 'x'"),
        ("architecture", {"num_key_value_heads": 5}, "must divide num_attention_heads=32, got 5"),
        ("architecture", {"hidden_size": -1}, "hidden_size must be positive, got -1"),
        ("evalute", {}, "unknown key 'evalute' in .*mine.yaml: the nearest is 'evaluate'"),
    ],
)
def test_a_wrong_recipe_is_refused(
    section: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sections = yaml.safe_load(recipe_text("llama-3.1-8b"))
    sections[section] = sections.get(section, {}) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(sections))
    with pytest.raises(ValueError, match=message):
        load_recipe(str(path))


def test_a_recipe_of_ones_own(tmp_path: Path, llama: Recipe) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("llama-3.1-8b"))
    assert load_recipe(str(path)) == replace(llama, name="mine")
    sections = yaml.safe_load(recipe_text("llama-3.1-8b"))
    del sections["discover"], sections["train"]["model"]
    path.write_text(yaml.safe_dump(sections))
    with pytest.raises(ValueError, match=r"must have the sections .*, not \['discover'\]"):
        load_recipe(str(path))
    sections["discover"] = yaml.safe_load(recipe_text("llama-3.1-8b"))["discover"]
    path.write_text(yaml.safe_dump(sections))
    with pytest.raises(ValueError, match="section train of mine.yaml must have model"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match="a recipe is one of gemma-2-9b, .*got 'llama'"):
        load_recipe("llama")


def test_the_guards_hub_name_is_left_to_the_hub(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    """A judge of the recipes is fetched by its name, as the models are."""
    asked: list[str] = []

    class Tokenizer:
        chat_template = "{{ messages }}"

    monkeypatch.setattr(guard, "load_tokenizer", lambda name: asked.append(name) or Tokenizer())
    guard.GuardJudge(recipe.evaluate.judge.partition(":")[2], guard.JudgeOptions())
    assert asked == ["meta-llama/Llama-Guard-3-8B"]


def test_files_that_cannot_all_be_written_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def fails_late(path: Path, text: str, **options: Any) -> int:
        if path.name == "train.yaml":
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails_late)
        with pytest.raises(OSError, match="No space left"):
            write_configs("gemma-2-9b", folder)
    assert list(folder.iterdir()) == []
    (folder / "run.sh").write_text("mine")
    with pytest.raises(ValueError, match="must hold no run.sh"):
        write_configs("gemma-2-9b", folder, {"run.sh": "echo"})
    assert [path.name for path in folder.iterdir()] == ["run.sh"]


@pytest.mark.parametrize("description", ['"a\\nrm b"', '"\\e[31mred"', '"a\\u2028b"', "[a]"])
def test_a_description_is_one_line_of_text(description: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    lines = recipe_text("gemma-2-9b").splitlines()
    kept = [line for line in lines if not line.startswith("description:")]
    path.write_text("\n".join([f"description: {description}", *kept]))
    with pytest.raises(ValueError, match="description in .* must be one line, got"):
        load_recipe(str(path))
