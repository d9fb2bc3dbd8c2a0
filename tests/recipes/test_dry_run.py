"""Every stage of every recipe on a tiny random model of its family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pact.data.template import encode, header_ids
from pact.models.loading import load_model, load_tokenizer
from pact.recipes.dry_run import dry_run, dry_run_report
from pact.recipes.recipe import Recipe
from pact.recipes.tiny import CHATML, STYLES, save_guard, tiny_model, tiny_tokenizer

TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]


def test_all_stages(recipe: Recipe, tmp_path: Path) -> None:
    run = dry_run(recipe, tmp_path)
    assert run.refusals == 8
    assert run.tokens.ids.numel() == recipe.discover.top_k
    assert run.tokens.metadata["max_response_length"] == "64"
    assert run.training.records[-1]["step"] == 3  # 3 epochs of 8 examples, 8 a step
    assert run.training.records[-1]["kl"] > 0 and run.training.records[-1]["gate"] > 0
    kept = yaml.safe_load((tmp_path / "trained" / "config.yaml").read_text())
    own = {**vars(recipe.train), **vars(recipe.pact), "report_to": []}  # as YAML has a tuple
    replaced = {"model", "train_file", "output_dir", "tokens", "cache_dir", "lora_targets"}
    assert {n: v for n, v in kept.items() if n not in replaced} == {
        n: v for n, v in own.items() if n not in replaced
    }
    assert any((tmp_path / "cache").iterdir())  # the reference was kept, and not at home
    evaluation = run.evaluation
    assert evaluation.harmful is not None and evaluation.harmful.starts.successes == 8
    assert evaluation.drift is not None and evaluation.heldout is not None
    assert evaluation.benign is None and evaluation.task is None
    report = dry_run_report(recipe, run)
    assert report.startswith(f"{recipe.name} on a random {recipe.architecture.model_type} of 2 ")
    assert "\ntrain     3 steps, " in report


def test_a_setting_that_a_stage_refuses_is_found(llama: Recipe, tmp_path: Path) -> None:
    wrong = replace(llama, train=replace(llama.train, lora_targets=("query",)))
    with pytest.raises(ValueError, match="Target modules"):
        dry_run(wrong, tmp_path / "a")
    wrong = replace(llama, refusals=replace(llama.refusals, judge="keywords"))
    with pytest.raises(ValueError, match="judge must be one of"):
        dry_run(wrong, tmp_path / "b")


def test_the_tiny_model_is_of_the_family(recipe: Recipe) -> None:
    sizes = recipe.architecture
    tokenizer = tiny_tokenizer(sizes.model_type)
    config = tiny_model(sizes, tokenizer, seed=0).config
    assert config.model_type == sizes.model_type
    assert config.tie_word_embeddings == sizes.tie_word_embeddings
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        assert getattr(config, name, None) == getattr(sizes, name)
    wider = sizes.num_attention_heads * sizes.head_dim > sizes.hidden_size
    assert (config.num_attention_heads * config.head_dim > config.hidden_size) == wider


@pytest.mark.parametrize("family", [*STYLES, "another"])
def test_the_tiny_tokenizer_writes_chats_in_the_familys_style(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    encoded = encode(TURNS, tokenizer)
    answer = tokenizer.decode([label for label in encoded.labels if label != -100])
    end = {"llama": "<|eot_id|>", "gemma2": "<end_of_turn>"}.get(family, "<|im_end|>")
    assert answer == f"Good day.{end}"
    assert tokenizer.decode(header_ids(tokenizer)).endswith("\n")
    assert (STYLES.get(family) or CHATML).special_tokens[0] in tokenizer.get_vocab()


def test_the_guard_calls_everything_safe(recipe: Recipe, tmp_path: Path) -> None:
    folder = save_guard(recipe.architecture, tmp_path / "guard")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer("Any words at all.", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " safe"
