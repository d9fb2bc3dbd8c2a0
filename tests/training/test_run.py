"""From files to a trained model on disk, and every refusal on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict

from pact.data.dataset import encode_examples
from pact.discovery import SafetyTokens
from pact.models.loading import load_model, load_tokenizer
from pact.objective import PactConfig
from pact.training import TrainConfig, train
from pact.training import inputs as inputs_module
from pact.training import run as run_module
from pact.training.card import card_text
from pact.training.loop import fit
from tests.data.test_forms import RAISES
from tests.objectives import matching
from tests.rounding import AFTER_ADAM, NO_KL, STATES
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer
from tests.training.problem import (
    TOKEN_IDS,
    TOKEN_WEIGHTS,
    Stopping,
    conversations,
    largest_error,
    parameters_of,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model folder, a data file and a token file."""
    folder = tmp_path_factory.mktemp("files")
    rows = [json.dumps({"messages": turns}) for turns in conversations(12)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens.safetensors")
    return {
        "model": str(save_tiny(folder / "model")),
        "train_file": str(folder / "train.jsonl"),
        "tokens": str(folder / "tokens.safetensors"),
    }


def _settings(files: dict[str, str], output: Path, **settings: Any) -> TrainConfig:
    fast = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 200}
    return TrainConfig(**(files | fast | {"output_dir": str(output)} | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"full_finetuning": True},
        {"method": "plain", "tokens": None},
        {"dtype": "bf16"},
        {"dtype": "bf16", "full_finetuning": True},
    ],
    ids=["lora", "full", "plain", "lora bf16", "full bf16"],
)
def test_what_is_saved_is_what_was_trained(
    settings: dict[str, Any], files: dict[str, str], tmp_path: Path
) -> None:
    """The folder loads as a model with the trained logits, and as a tokenizer."""
    output = tmp_path / "run"
    result = train(_settings(files, output, **settings), PactConfig(over="selection"))
    assert len(result.records) == 4 and result.output_dir == output
    ids = torch.arange(3, 15)[None]  # (1, L)
    full = settings.get("full_finetuning", False)
    bf16_base = settings.get("dtype") == "bf16" and not full
    loaded = load_model(output, dtype="bf16" if bf16_base else "fp32")
    with torch.no_grad():
        ours, trained = loaded(ids).logits, result.model(ids).logits
        before = tiny_llama()(ids).logits
    torch.testing.assert_close(ours, trained, rtol=0, atol=0.05 if bf16_base else 1e-6)
    assert (trained - before).abs().max() > 0.1
    assert (output / "adapter_model.safetensors").is_file() != full
    assert load_tokenizer(output).chat_template == load_tokenizer(files["model"]).chat_template
    names = {path.name for path in output.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "metrics.png", "checkpoints"} <= names
    saved = yaml.safe_load((output / "config.yaml").read_text())
    assert saved["learning_rate"] == 1e-2 and saved["over"] == "selection"


def test_pact_holds_the_student_where_plain_lets_it_go(
    files: dict[str, str], tmp_path: Path
) -> None:
    """A strong weight on the KL leaves the KL of true confidences smaller than without it."""
    kl = {}
    for weight in (0.0, 100.0):
        config = _settings(files, tmp_path / str(weight), max_steps=12)
        pact = matching("vocabulary", gate=False, kl_weight=weight)
        records = train(config, pact).records
        kl[weight] = records[-1]["kl"]
    assert kl[100.0] < 0.5 * kl[0.0]


@pytest.mark.parametrize("pack_length", [None, 400])
def test_packing_trains_what_padding_trains(
    pack_length: int | None, files: dict[str, str], tmp_path: Path
) -> None:
    runs = []
    for packing in (False, True):
        config = _settings(
            files,
            tmp_path / str(packing),
            packing=packing,
            pack_length=pack_length if packing else None,
        )
        runs.append(train(config, PactConfig(over="selection")))
    for padded, packed in zip(*(run.records for run in runs), strict=True):
        assert packed["loss"] == pytest.approx(padded["loss"], rel=STATES)
        assert packed["kl"] == pytest.approx(padded["kl"], rel=AFTER_ADAM, abs=NO_KL)
    error = largest_error(*(parameters_of(run.model.train()) for run in runs))
    assert error < AFTER_ADAM


def test_refusals_join_the_conversations(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the data are refusals then, in training and in the cache that is filled ahead."""
    rows = [json.dumps({"messages": turns}) for turns in conversations(9)]
    (tmp_path / "refusals.jsonl").write_text("\n".join(rows))
    sizes = []

    def count(data: list[Any], *rest: Any, **options: Any) -> Any:
        sizes.append(len(data))
        return encode_examples(data, *rest, **options)

    monkeypatch.setattr(inputs_module, "encode_examples", count)
    mixed = {"refusals": str(tmp_path / "refusals.jsonl"), "refusal_share": 1 / 3}
    config = _settings(files, tmp_path / "run", cache_dir=str(tmp_path / "cache"), **mixed)
    train(config)
    run_module.fill(config)
    assert sizes == [12 + 6] * 2
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["refusals"] == mixed["refusals"]


def test_another_reference_model(files: dict[str, str], tmp_path: Path) -> None:
    """The first step's KL is 0 against the model itself, and not against another."""
    pact = matching("vocabulary", gate=False)
    own = train(_settings(files, tmp_path / "own", max_steps=1), pact).records[0]["kl"]
    other_model = str(save_tiny(tmp_path / "other", seed=1))
    config = _settings(files, tmp_path / "run", max_steps=1, reference_model=other_model)
    other = train(config, pact).records[0]["kl"]
    assert abs(own) < NO_KL < 1e-3 < other


def test_full_finetuning_keeps_a_copy_as_reference(files: dict[str, str], tmp_path: Path) -> None:
    """Its KL starts at 0 and grows, so the reference does not move with the student."""
    pact = matching("vocabulary", gate=False, kl_weight=0.0)
    records = train(_settings(files, tmp_path / "run", full_finetuning=True), pact).records
    assert abs(records[0]["kl"]) < NO_KL < 1e-3 < records[-1]["kl"]


def test_resume_takes_up_the_run_of_the_folder(files: dict[str, str], tmp_path: Path) -> None:
    settings = {"save_every": 2, "max_steps": 4}
    whole = train(_settings(files, tmp_path / "whole", **settings)).model.state_dict()

    def stopping(model: Any, dataset: Any, *rest: Any, **options: Any) -> Any:
        return fit(model, Stopping(dataset, reads=2 * 4), *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "fit", stopping)
        with pytest.raises(ConnectionError):
            train(_settings(files, tmp_path / "run", **settings))
    resumed = train(_settings(files, tmp_path / "run", **settings, resume=True)).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_resume_with_other_settings_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(_settings(files, output, max_steps=1))
    with pytest.raises(ValueError, match="must keep its settings, got learning_rate=0.5 where"):
        train(_settings(files, output, max_steps=1, learning_rate=0.5, resume=True))
    with pytest.raises(ValueError, match="must keep its settings, got gate=True where"):
        train(_settings(files, output, max_steps=1, resume=True), PactConfig(gate=True))
    train(_settings(files, output, max_steps=1, resume=True, log_every=7, save_every=3))


def test_a_folder_in_use_is_refused_before_anything_is_loaded(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "load_tokenizer", _never)
    monkeypatch.setattr(inputs_module, "load_model", _never)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="output_dir must be empty, got .* with files in it"):
        train(_settings(files, tmp_path))
    with pytest.raises(ValueError, match="output_dir must be a folder, got the file"):
        train(_settings(files, tmp_path / "note.txt"))


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("this should not have been loaded")


def test_wrong_inputs_are_refused_before_the_model_is_loaded(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "load_model", _never)
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}))
    foreign = tmp_path / "foreign.safetensors"
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata={"tokenizer_size": "50257"}).save(foreign)
    for wrong, message in (
        ({"train_file": str(silent)}, "no assistant turn in the data"),
        ({"train_file": str(tmp_path / "none.jsonl")}, "none.jsonl does not exist"),
        ({"tokens": str(tmp_path / "none")}, "safety-token file .* does not exist"),
        ({"tokens": str(foreign)}, "vocabulary differs"),
        ({"model": str(tmp_path / "none")}, "model folder .* does not exist"),
        ({"eval_file": str(tmp_path / "none.jsonl")}, "none.jsonl does not exist"),
        ({"eval_file": str(silent)}, "no assistant turn in the data"),
        (
            {"eval_file": files["train_file"], "probe_prompts": str(tmp_path / "none.jsonl")},
            "none.jsonl does not exist",
        ),
        ({"report_to": ("tensorbored",)}, "installed, got 'tensorbored'"),
        ({"optimizer": "adamm"}, "optimizer 'adamm' cannot be had: transformers knows adamw_torch"),
    ):
        with pytest.raises(ValueError, match=message):
            train(_settings(files, tmp_path / "run", **wrong))
    assert not (tmp_path / "run").exists()


def test_a_label_beyond_the_models_vocabulary_is_refused(
    files: dict[str, str], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model")
    tiny_llama(vocab_size=300).save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"below the model's vocabulary of 300, got 3\d\d in .*train.jsonl"
    ):
        train(_settings(files, tmp_path / "run", model=str(folder)))
    low = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 4
    (tmp_path / "low.jsonl").write_text("\n".join(map(json.dumps, low)))
    settings = {"train_file": str(tmp_path / "low.jsonl"), "eval_file": files["train_file"]}
    plain = {"method": "plain", "tokens": None, **settings}
    with pytest.raises(ValueError, match=r"vocabulary of 300, got 3\d\d in .*train.jsonl"):
        train(_settings(files, tmp_path / "run", model=str(folder), **plain))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["token ids", "sharegpt"])
def test_data_of_another_form_train_the_same(
    form: str, files: dict[str, str], tmp_path: Path
) -> None:
    """Conversations that were encoded before, and those under other names, in Parquet."""
    turns = conversations(12)
    if form == "token ids":
        data = encode_examples(turns, load_tokenizer(files["model"]), None)
        settings: dict[str, Any] = {}
    else:
        roles = {"user": "human", "assistant": "gpt"}
        chats = [[{"from": roles[m["role"]], "value": m["content"]} for m in t] for t in turns]
        data = Dataset.from_dict({"chat": chats})
        settings = {"columns": {"conversations": "chat"}}
    data.to_parquet(tmp_path / "data.parquet")
    own = train(_settings(files, tmp_path / "own"))
    file = str(tmp_path / "data.parquet")
    other = train(_settings(files, tmp_path / "other", train_file=file, **settings))
    assert largest_error(parameters_of(other.model), parameters_of(own.model)) == 0.0
    if form == "token ids":
        with pytest.raises(ValueError, match="refusals join conversations, got token ids"):
            mixed = {"train_file": file, "refusals": files["train_file"]}
            train(_settings(files, tmp_path / "mixed", **mixed))


def test_a_run_on_other_examples_too_and_its_card(files: dict[str, str], tmp_path: Path) -> None:
    """Evaluated twice an epoch, probed, and described; the best weights are what is saved."""
    requests = [{"prompt": f"request {n}"} for n in range(3)]
    (tmp_path / "probe.jsonl").write_text("\n".join(map(json.dumps, requests)))
    settings = {"eval_file": files["train_file"], "probe_prompts": str(tmp_path / "probe.jsonl")}
    config = _settings(files, tmp_path / "run", **settings, eval_every=2, lora_rslora=True)
    result = train(config)
    looked = [record for record in result.records if "eval_loss" in record]
    assert [record["step"] for record in looked] == [2, 4]
    assert all(0.0 <= record["eval_refusals"] <= 1.0 for record in looked)
    assert result.model.peft_config["default"].use_rslora
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "peft"
    assert "drift on the training rows" in body and "on other examples, at step" in body
    assert "harmful requests refused there: " in body and "learning_rate: 0.01" in body
    assert "evaluation data `" in body
    assert "lora_rslora: True" in body and "lora_dora: False" in body and "quantize" not in body
    changed = config_with_other_evaluation(config, tmp_path)
    with pytest.raises(ValueError, match="got another evaluation data than"):
        train(changed)


RECORDS = [
    {"step": 1, "loss": 3.0, "cross_entropy": 3.0, "kl": 0.25},
    {"step": 2, "loss": 2.0, "cross_entropy": 2.0, "kl": 0.5},
    {"step": 2, "eval_loss": 1.0, "eval_cross_entropy": 1.0, "eval_kl": 0.125},
    {"step": 4, "loss": 1.5, "cross_entropy": 1.5, "kl": 0.75},
    {"step": 4, "eval_loss": 1.25, "eval_cross_entropy": 1.25, "eval_kl": 0.625},
]


@pytest.mark.parametrize(
    ("keep_best", "step", "trained", "kl", "found"),
    [(True, 2, "2.0000", "0.5", "1.0000"), (False, 4, "1.5000", "0.75", "1.2500")],
)
def test_a_card_measures_the_saved_weights(
    keep_best: bool, step: int, trained: str, kl: str, found: str, files: dict[str, str]
) -> None:
    config = _settings(files, Path("run"), keep_best=keep_best, quantize="4bit")
    lines = card_text(config, PactConfig(), RECORDS, {}).splitlines()
    assert f"- the saved weights: those of step {step}, of 4 that were taken" in lines
    assert f"- in training, step {step}: cross-entropy {trained}" in lines
    assert f"- drift on the training rows there, KL to the reference: {kl}" in lines
    assert any(f"at step {step}: cross-entropy {found}" in line for line in lines)
    assert "- quantize: 4bit" in lines


def test_the_evaluation_may_be_another_split(files: dict[str, str], tmp_path: Path) -> None:
    """One saved data set has a train and a test split; `pact cache` reads neither's test."""
    turns = conversations(9)
    parts = {"train": turns[:6], "test": turns[6:]}
    data = {name: Dataset.from_dict({"messages": part}) for name, part in parts.items()}
    DatasetDict(data).save_to_disk(tmp_path / "data")
    where = str(tmp_path / "data")
    config = _settings(files, tmp_path / "run", train_file=where, eval_file=where)
    for split, size in (("test", 3), (None, 6)):
        given = inputs_module.loaded_inputs(replace(config, eval_split=split), PactConfig())
        assert given.evaluation is not None
        assert (len(given.dataset), len(given.evaluation.dataset)) == (6, size)
    with pytest.raises(ValueError, match="'none'"):
        inputs_module.loaded_inputs(replace(config, eval_split="none"), PactConfig())
    cache_dir = str(tmp_path / "cache")
    run_module.fill(replace(config, eval_split="none", cache_dir=cache_dir))


def config_with_other_evaluation(config: TrainConfig, folder: Path) -> TrainConfig:
    rows = [json.dumps({"messages": turns}) for turns in conversations(5)]
    (folder / "other.jsonl").write_text("\n".join(rows))
    return replace(config, eval_file=str(folder / "other.jsonl"), resume=True)


def test_a_probe_prompts_system_turn_is_folded_like_the_datas(
    files: dict[str, str], tmp_path: Path
) -> None:
    turns = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    (tmp_path / "probe.jsonl").write_text(json.dumps({"messages": turns}))
    probed = {"eval_file": files["train_file"], "probe_prompts": str(tmp_path / "probe.jsonl")}
    config = _settings(files, tmp_path / "run", **probed)
    tokenizer = tiny_tokenizer(RAISES)
    with pytest.raises(ValueError, match="System role not supported"):
        inputs_module._probe_prompts(config, tokenizer)
    (asked,) = inputs_module._probe_prompts(replace(config, fold_system=True), tokenizer)
    assert asked == [{"role": "user", "content": "Be brief\n\nHi"}]
