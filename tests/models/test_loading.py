"""Folders of adapters are the model that they stand for, wherever a model is named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    get_peft_model,
)

from pact.discovery import DiscoverConfig, SafetyTokens, run_discover
from pact.evaluation import EvaluateConfig, run_evaluate
from pact.evaluation.generate import generate_answers
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from pact.models.loading import find_model, load_model, load_tokenizer
from pact.objective import PactConfig
from pact.training import TrainConfig, train
from pact.training.run import fill
from tests.rounding import NO_KL_ACROSS, STATES
from tests.tiny import CHATML, save_tiny, tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

IDS = torch.arange(3, 15)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def save_adapters(folder: Path, config: Any = None, tied: bool = False) -> torch.Tensor:
    """A folder of trained adapters with its tokenizer, on a base beside it; returns its logits."""
    base = folder.with_name("base-of-" + folder.name)
    tiny_llama(tied=tied).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    config = config or LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    config.base_model_name_or_path = str(base)
    model = get_peft_model(load_model(base), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert (logits(model) - logits(tiny_llama(tied=tied))).abs().max() > 0.1
    return logits(model)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """An aligned model that is a folder of adapters, and what a run needs beside it."""
    save_adapters(tmp_path / "aligned")
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(tmp_path / "tokens.safetensors")
    return {
        "model": str(tmp_path / "aligned"),
        "train_file": str(tmp_path / "train.jsonl"),
        "tokens": str(tmp_path / "tokens.safetensors"),
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
    }


def settings(files: dict[str, str], **changes: Any) -> TrainConfig:
    fast = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "max_length": 200}
    return TrainConfig(**(files | fast | changes))


def test_adapters_are_kept_apart_or_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = save_adapters(tmp_path / "aligned")
    apart = load_model(tmp_path / "aligned")
    torch.testing.assert_close(logits(apart), expected)
    with apart.disable_adapter():
        torch.testing.assert_close(logits(apart), logits(tiny_llama()))
    with caplog.at_level(logging.INFO):
        merged = load_model(tmp_path / "aligned", merge_adapters=True)
    assert not hasattr(merged, "peft_config") and not merged.training
    torch.testing.assert_close(logits(merged), expected, rtol=STATES, atol=STATES)
    assert f"{tmp_path / 'aligned'} holds adapters: they are merged into their base" in caplog.text
    narrow = load_model(tmp_path / "aligned", dtype="bf16", merge_adapters=True)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_run_on_adapters_starts_from_them_and_its_output_loads(
    full: bool, files: dict[str, str], tmp_path: Path
) -> None:
    """Its reference is the aligned model, so its KL starts at 0; not the bare base."""
    aligned = logits(load_model(files["model"]))
    pact = PactConfig(over="vocabulary", positive_only=False)
    result = train(settings(files, full_finetuning=full), pact)
    assert abs(result.records[0]["kl"]) < NO_KL_ACROSS
    output = Path(files["output_dir"])
    loaded = load_model(output)
    torch.testing.assert_close(logits(loaded), logits(result.model), rtol=STATES, atol=STATES)
    assert (output / "adapter_model.safetensors").is_file() != full
    if full:
        assert (output / "model.safetensors").is_file()
        return
    with loaded.disable_adapter():  # what `pact evaluate` takes as the drift's reference
        torch.testing.assert_close(logits(loaded), aligned, rtol=STATES, atol=STATES)
    by_peft = AutoPeftModelForCausalLM.from_pretrained(str(output)).eval()
    torch.testing.assert_close(logits(by_peft), logits(result.model), rtol=STATES, atol=STATES)
    shutil.rmtree(files["model"])  # nothing of it is needed any more, and the folder may move
    output = output.rename(tmp_path / "moved")
    torch.testing.assert_close(
        logits(load_model(output)), logits(result.model), rtol=STATES, atol=STATES
    )
    merged = load_model(output, merge_adapters=True)
    torch.testing.assert_close(logits(merged), logits(result.model), rtol=STATES, atol=STATES)


def test_a_run_on_a_runs_output_is_a_run_on_what_it_trained(
    files: dict[str, str], tmp_path: Path
) -> None:
    first = train(settings(files))
    second = train(
        settings(files, model=files["output_dir"], output_dir=str(tmp_path / "second")),
        PactConfig(over="vocabulary", positive_only=False),
    )
    assert abs(second.records[0]["kl"]) < NO_KL_ACROSS
    loaded = load_model(tmp_path / "second")
    with loaded.disable_adapter():
        torch.testing.assert_close(logits(loaded), logits(first.model), rtol=STATES, atol=STATES)


def test_the_cache_of_adapters_is_of_the_aligned_model(files: dict[str, str]) -> None:
    """The key of a merged model, not of its base's."""
    ours = fill(settings(files)).folder
    base = fill(settings(files, model=str(Path(files["model"]).with_name("base-of-aligned"))))
    assert ours != base.folder


def test_commands_take_adapters_as_the_model(files: dict[str, str], tmp_path: Path) -> None:
    aligned, base = files["model"], str(Path(files["model"]).with_name("base-of-aligned"))
    found = run_discover(
        DiscoverConfig(
            aligned=aligned,
            base=base,
            data=files["train_file"],
            output=str(tmp_path / "found.safetensors"),
            top_k=8,
        )
    )
    assert found.base_confidence is not None and found.aligned_confidence is not None
    assert (found.base_confidence - found.aligned_confidence).abs().max() > 1e-4
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"prompt": "question 1"}\n')
    expected = generate_answers(
        load_model(aligned), load_tokenizer(aligned), ["Hi"], max_new_tokens=8, batch_size=1
    )
    result = run_evaluate(
        EvaluateConfig(
            model=aligned,
            harmful=str(prompts),
            output_dir=str(tmp_path / "evaluated"),
            max_new_tokens=8,
        )
    )
    assert result.generations[0].answer == expected[0]
    with pytest.raises(ValueError, match="at least one answer must refuse, got none of 2"):
        write_refusals(
            RefusalsConfig(model=aligned, prompts=str(prompts), output=str(tmp_path / "r.jsonl"))
        )


def test_drift_without_a_reference_switches_adapters_off(
    files: dict[str, str], tmp_path: Path
) -> None:
    result = run_evaluate(
        EvaluateConfig(
            model=files["model"],
            drift=files["train_file"],
            tokens=files["tokens"],
            output_dir=str(tmp_path / "evaluated"),
        )
    )
    assert result.drift is not None and result.drift.kl_vocabulary_nats > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "the base of the adapters in .* got None"),
        ({"base_model_name_or_path": "/gone/model"}, "got '/gone/model'.*does not exist"),
        ({"task_type": "SEQ_CLS"}, "of a causal language model, got task_type='SEQ_CLS'"),
    ],
)
def test_adapters_without_their_base_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_adapters(tmp_path / "aligned")
    path = tmp_path / "aligned" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "aligned", merge_adapters=True)


def test_adapters_on_adapters_are_refused(tmp_path: Path) -> None:
    save_adapters(tmp_path / "one")
    save_adapters(tmp_path / "two")
    path = tmp_path / "two" / "adapter_config.json"
    nested = {"base_model_name_or_path": str(tmp_path / "one")}
    path.write_text(json.dumps(json.loads(path.read_text()) | nested))
    with pytest.raises(ValueError, match="must be a whole model, got .*one, which holds adapters"):
        load_model(tmp_path / "two")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True),
        LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
        ),
        IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]),
    ],
    ids=["dora", "modules_to_save", "ia3"],
)
def test_other_adapters_are_merged_to_the_same_logits(config: Any, tmp_path: Path) -> None:
    expected = save_adapters(tmp_path / "aligned", config)
    merged = load_model(tmp_path / "aligned", merge_adapters=True)
    torch.testing.assert_close(logits(merged), expected, rtol=STATES, atol=STATES)


def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    embeddings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"])
    save_adapters(tmp_path / "tied", embeddings, tied=True)
    with pytest.raises(ValueError, match="same logits merged as apart.*tied embeddings"):
        load_model(tmp_path / "tied", merge_adapters=True)
    save_adapters(
        tmp_path / "prompt", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="can be merged.*got PREFIX_TUNING in .*prompt"):
        load_model(tmp_path / "prompt", merge_adapters=True)


def test_what_was_trained_stops_where_a_turn_ends(tmp_path: Path) -> None:
    """The model's own settings end at another token, and sample at a temperature."""
    template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    folder = save_tiny(tmp_path / "model")
    tiny_tokenizer(template).save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    own = {**generation, "eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(own))
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": conversations(1)[0]}))
    for full in (False, True):
        output = tmp_path / f"run-{full}"
        train(
            TrainConfig(
                model=str(folder),
                train_file=str(tmp_path / "train.jsonl"),
                output_dir=str(output),
                method="plain",
                max_steps=1,
                full_finetuning=full,
            )
        )
        saved = json.loads((output / "generation_config.json").read_text())
        assert saved["eos_token_id"] == [2, 0]  # 0 is <|endoftext|>
        assert (saved["temperature"], saved["top_k"]) == (0.6, 7)
        assert load_model(output).generation_config.eos_token_id == [2, 0]


def test_variables_of_the_template_reach_the_data_and_stay(tmp_path: Path) -> None:
    template = "{% if shout is defined and shout %}{{ 'LOUD ' }}{% endif %}" + CHATML
    folder = save_tiny(tmp_path / "model")
    tiny_tokenizer(template).save_pretrained(folder)
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": conversations(1)[0]}))
    run = {
        "model": str(folder),
        "train_file": str(tmp_path / "train.jsonl"),
        "method": "plain",
        "max_steps": 1,
    }
    kwargs = {"shout": True}
    train(TrainConfig(**run, output_dir=str(tmp_path / "run"), chat_template_kwargs=kwargs))
    kept = load_tokenizer(tmp_path / "run")
    turns = [{"role": "user", "content": "Hi"}]
    assert kept.apply_chat_template(turns, tokenize=False).startswith("LOUD ")
    with pytest.raises(ValueError, match="'shoutt', which it does not: it would have no effect"):
        wrong = {"shoutt": True}
        train(TrainConfig(**run, output_dir=str(tmp_path / "b"), chat_template_kwargs=wrong))


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_a_name_that_is_nowhere_is_said_at_once(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub is asked once; here it is not to be asked at all."""
    asked = []

    def ask(self: Any, name: str, **options: Any) -> None:
        asked.append((name, options))
        raise ConnectionError("no such place")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    with pytest.raises(ValueError, match="'my-aligned-model' is neither a folder here nor found"):
        load("my-aligned-model")
    assert [name for name, _ in asked] == ["my-aligned-model"]
    assert asked[0][1]["timeout"] <= 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load("my-aligned-model")
    for missing in ("./nowhere", "/nowhere", "~/nowhere/at/all", "a/b/c"):
        with pytest.raises(ValueError, match="model folder .* does not exist"):
            load(missing)
    with pytest.raises(ValueError, match="a user who has a home folder, got ~nosuchuser/model"):
        load("~nosuchuser/model")
    (tmp_path / "model.gguf").write_text("x")
    with pytest.raises(ValueError, match="must be a folder or a hub name, got the file"):
        load(str(tmp_path / "model.gguf"))
    assert len(asked) == 1


def test_a_folder_is_found_by_its_path(tmp_path: Path) -> None:
    assert find_model(tmp_path) == str(tmp_path)
