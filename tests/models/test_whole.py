"""A model is loaded with every weight from its files, or not at all."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, VBLoRAConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from pact.discovery import DiscoverConfig, run_discover
from pact.evaluation import EvaluateConfig, run_evaluate
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from pact.models.loading import load_model
from pact.training import TrainConfig, train
from pact.training.merge import merge
from pact.training.run import fill
from tests.models.test_loading import save_adapters
from tests.tiny import save_tiny, tiny_llama

Tensors = dict[str, Tensor]
IDS = torch.arange(3, 15)[None]
DOWN = "model.layers.0.mlp.down_proj.weight"


def edit(path: Path, change: Callable[[Tensors], None]) -> None:
    """Change a file of weights."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def without(part: str) -> Callable[[Tensors], None]:
    def change(weights: Tensors) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    return change


def renamed(weights: Tensors) -> None:
    for name in list(weights):
        weights[f"transformer.{name}"] = weights.pop(name)


def with_weight(name: str, weight: Tensor) -> Callable[[Tensors], None]:
    return lambda weights: weights.update({name: weight})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.1."), r"got 9 missing \(model.layers.1.input_layernorm.weight, .*\.\.\."),
        (without("lm_head"), r"got 1 missing \(lm_head.weight\): save or download all"),
        (renamed, r"got 21 missing \(lm_head.weight, .*, 21 beyond them \(transformer.lm_head"),
        (with_weight(DOWN, torch.ones(3, 5)), r"1 of another shape \(.*\(3, 5\) for \(32, 64\)\)"),
        (with_weight("v_head.weight", torch.ones(1, 32)), r"1 beyond them \(v_head.weight\): save"),
        (with_weight(DOWN, torch.full((32, 64), torch.nan)), f"finite, got NaN .* in {DOWN}"),
        (with_weight(DOWN, torch.full((32, 64), -torch.inf)), "finite, got NaN or infinity in"),
    ],
    ids=["a layer", "the head", "all renamed", "a shape", "another head", "nan", "infinite"],
)
def test_other_weights_are_refused(
    change: Callable[[Tensors], None],
    message: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = save_tiny(tmp_path / "model")
    edit(folder / "model.safetensors", change)
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)  # it does not propagate
    try:
        with pytest.raises(ValueError, match=message):
            load_model(folder)
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text  # one line is enough


def test_a_config_of_more_layers_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="got 9 missing"):
        load_model(folder)


def test_a_value_beyond_the_precision_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    edit(folder / "model.safetensors", with_weight(DOWN, torch.full((32, 64), 1e5)))
    assert load_model(folder) is not None
    with pytest.raises(ValueError, match="infinity in .* as float16: .*or a wider dtype"):
        load_model(folder, dtype="fp16")  # its largest value is 65504


def test_what_is_rightly_missing_or_left_over_loads(tmp_path: Path) -> None:
    """A tied head is not in the file; an old file has buffers that the model makes itself."""
    for name, tied in (("tied", True), ("apart", False)):
        model, folder = tiny_llama(tied=tied), tmp_path / name
        model.save_pretrained(folder)
        buffer = with_weight("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
        edit(folder / "model.safetensors", buffer)
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != tied
        torch.testing.assert_close(load_model(folder)(IDS).logits, model(IDS).logits)


def test_other_forms_of_the_same_weights_load(tmp_path: Path) -> None:
    expected = tiny_llama()(IDS).logits
    tiny_llama().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    folder = save_tiny(tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for name in ("shards", "pickle"):
        torch.testing.assert_close(load_model(tmp_path / name)(IDS).logits, expected)


def test_every_command_refuses_a_model_without_a_layer(tmp_path: Path) -> None:
    broken, whole = save_tiny(tmp_path / "broken"), str(save_tiny(tmp_path / "whole"))
    edit(broken / "model.safetensors", without("layers.1."))
    model, data = str(broken), str(tmp_path / "data.jsonl")
    Path(data).write_text('{"prompt": "Hi", "completion": "I cannot help with that."}\n')
    out = str(tmp_path / "out")
    common: dict[str, Any] = {"train_file": data, "output_dir": out, "method": "plain"}
    held: dict[str, Any] = {**common, "method": "pact", "tokens": str(tmp_path / "tokens")}
    run_discover(
        DiscoverConfig(
            aligned=whole,
            base=str(save_tiny(tmp_path / "base", seed=1)),
            data=data,
            output=held["tokens"],
        )
    )
    refused: dict[str, Callable[[], Any]] = {
        "aligned": lambda: run_discover(
            DiscoverConfig(aligned=model, base=whole, data=data, output=out)
        ),
        "base": lambda: run_discover(
            DiscoverConfig(aligned=whole, base=model, data=data, output=out)
        ),
        "refusals": lambda: write_refusals(
            RefusalsConfig(model=model, prompts=data, output=out + ".jsonl")
        ),
        "evaluate": lambda: run_evaluate(EvaluateConfig(model=model, harmful=data, output_dir=out)),
        "reference": lambda: run_evaluate(
            EvaluateConfig(
                model=whole, reference=model, drift=data, tokens=held["tokens"], output_dir=out
            )
        ),
        "train": lambda: train(TrainConfig(model=model, **common)),
        "held to": lambda: train(TrainConfig(model=whole, reference_model=model, **held)),
        "cache": lambda: fill(TrainConfig(model=model, **held)),
    }
    for name, act in refused.items():
        with pytest.raises(ValueError, match=r"got 9 missing \(model.layers.1"):
            pytest.fail(f"{name} took it: {act()}")
    assert not list(tmp_path.glob("out*"))


ADAPTERS = "adapter_model.safetensors"
LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def of_nowhere(weights: Tensors) -> None:
    for name in list(weights):
        weights[name.replace("q_proj", "z_proj")] = weights.pop(name)


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layers.1.self_attn.q_proj.lora_B"),
            r"of the adapters .* got 1 missing \(.*q_pro",
        ),
        (of_nowhere, r"got 4 missing \(.*q_proj.*, 4 beyond them \(.*z_proj"),
        (without("lora"), "got 8 missing"),
        (with_weight(LORA_A, torch.ones(7, 7)), r"cannot be loaded .*\[7, 7\]"),
        (with_weight(LORA_A.replace("0", "9"), torch.ones(2, 32)), r"1 beyond them \(.*layers.9"),
        (with_weight(LORA_A, torch.full((2, 32), torch.nan)), "the adapters in .* must be finite"),
    ],
    ids=["one", "renamed", "empty", "a shape", "another layer", "nan"],
)
def test_other_adapters_are_refused(
    change: Callable[[Tensors], None], message: str, merged: bool, tmp_path: Path
) -> None:
    save_adapters(tmp_path / "adapters")
    edit(tmp_path / "adapters" / ADAPTERS, change)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error", UserWarning)  # one line is enough
        load_model(tmp_path / "adapters", merge_adapters=merged)


@pytest.mark.parametrize("place", ["base-of-adapters", "adapters/base"], ids=["beside", "within"])
def test_adapters_of_a_base_without_a_layer_are_refused(place: str, tmp_path: Path) -> None:
    save_adapters(tmp_path / "adapters")
    (tmp_path / "base-of-adapters").rename(tmp_path / place)
    edit(tmp_path / place / "model.safetensors", without("layers.1."))
    with pytest.raises(ValueError, match=f"{place} must be all .* got 9 missing"):
        merge(tmp_path / "adapters", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapters_of_other_settings_are_refused(tmp_path: Path) -> None:
    save_adapters(tmp_path / "adapters")
    path = tmp_path / "adapters" / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"target_modules": ["q_proj"]}, r"4 beyond them \(.*v_proj"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, r"4 missing \(.*k_proj"),
        ({"target_modules": ["nowhere"]}, "cannot be loaded .*nowhere"),
        ({"r": 4}, "cannot be loaded .*size mismatch"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "adapters")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4]),
        VBLoRAConfig(target_modules=["q_proj"], num_vectors=8, vector_length=8),  # shares weights
        PrefixTuningConfig(num_virtual_tokens=2),  # in no layer
    ],
    ids=["saved beside", "rows", "shared", "prompt"],
)
def test_adapters_of_other_kinds_load(config: Any, tmp_path: Path) -> None:
    config.task_type = "CAUSAL_LM"
    expected = save_adapters(tmp_path / "adapters", config)
    torch.testing.assert_close(load_model(tmp_path / "adapters")(IDS).logits, expected)


def test_adapters_saved_with_their_embeddings_load(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(330)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapters", save_embedding_layers=True)
    torch.testing.assert_close(
        load_model(tmp_path / "adapters")(IDS).logits, model.eval()(IDS).logits
    )


def test_a_merged_weight_beyond_the_precision_is_refused(tmp_path: Path) -> None:
    save_adapters(tmp_path / "adapters")
    edit(
        tmp_path / "base-of-adapters" / "model.safetensors",
        with_weight(DOWN, torch.full((32, 64), 1e5)),
    )
    with pytest.raises(ValueError, match="merged, must be finite"):
        merge(tmp_path / "adapters", tmp_path / "merged", dtype="fp16")
    assert not (tmp_path / "merged").exists()
