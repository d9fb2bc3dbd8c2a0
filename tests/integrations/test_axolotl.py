"""The plugin against a stand-in of Axolotl's interface, which is that of 0.19."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import Trainer

from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.integrations.transformers_models import is_patched
from pact.objective import PactConfig
from pact.reference import AdaptersOff
from pact.training.student import add_adapters
from tests.integrations.test_mixin import DATA, arguments, collate, logged
from tests.tiny import tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS


class BasePlugin:
    """The hooks that Axolotl calls, which do nothing."""

    def register(self, cfg: dict[str, Any]) -> None: ...
    def get_input_args(self) -> str | None: ...
    def get_training_args_mixin(self) -> str | None: ...
    def pre_model_load(self, cfg: Any) -> None: ...
    def post_model_build(self, cfg: Any, model: Any) -> None: ...
    def post_model_load(self, cfg: Any, model: Any) -> None: ...
    def get_trainer_cls(self, cfg: Any) -> type | None: ...
    def get_training_args(self, cfg: Any) -> None: ...
    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> None: ...


class AxolotlTrainer(Trainer):
    """It looks for the denominator by name, and turns it off where it is not."""

    def __init__(self, *args: Any, bench_data_collator: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        import inspect

        names = inspect.signature(self.model.get_base_model().forward).parameters
        self.model_accepts_loss_kwargs = "num_items_in_batch" in names


@pytest.fixture
def axolotl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the plugin, above the stand-in."""
    parts = {
        "axolotl": {},
        "axolotl.integrations": {},
        "axolotl.integrations.base": {"BasePlugin": BasePlugin},
        "axolotl.core": {},
        "axolotl.core.trainers": {},
        "axolotl.core.trainers.base": {"AxolotlTrainer": AxolotlTrainer},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "pact.integrations.axolotl", raising=False)
    made = importlib.import_module("pact.integrations.axolotl")
    monkeypatch.delitem(sys.modules, "pact.integrations.axolotl")
    return made


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """What the YAML says, as Axolotl's configuration has it: a dict with `get`."""
    file = tmp_path / "tokens.safetensors"
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(file)
    return {"pact_tokens": str(file), "pact_config": {"kl_weight": 3.0}}


def test_a_model_is_patched_with_its_adapters_and_trained(
    axolotl: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The hooks in Axolotl's order."""
    plugin = axolotl.PactPlugin()
    module, _, name = plugin.get_input_args().rpartition(".")
    assert module == axolotl.__name__
    read = getattr(axolotl, name)(**settings)
    assert read.pact_config == {"kl_weight": 3.0}
    plugin.pre_model_load(settings)
    model = add_adapters(tiny_llama())
    plugin.post_model_load(settings, model)
    assert is_patched(model)
    state = model.get_base_model()._pact
    assert isinstance(state.reference, AdaptersOff)
    assert state.objective.config == PactConfig(kl_weight=3.0)
    kind = plugin.get_trainer_cls(settings)
    assert issubclass(kind, PatchedTrainer) and issubclass(kind, AxolotlTrainer)
    assert plugin.get_collator_cls_and_kwargs(settings) is None
    trainer = kind(
        model=model,
        args=arguments(tmp_path, max_steps=3, learning_rate=0.1),
        train_dataset=DATA,
        data_collator=collate,
        bench_data_collator=collate,
    )
    assert trainer.model_accepts_loss_kwargs
    entries = logged(trainer)
    assert entries[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # fresh adapters
    assert entries[-1]["kl"] > 1e-6
    for entry in entries:
        total = float(entry["cross_entropy"]) + 3.0 * float(entry["kl"])
        assert float(entry["loss"]) == pytest.approx(total, rel=1e-3)  # logs round


def test_what_cannot_be_honoured_is_refused(axolotl: Any, settings: dict[str, Any]) -> None:
    plugin = axolotl.PactPlugin()
    for name, value, said in (
        ("cut_cross_entropy", True, "the loss is pact's, got cut_cross_entropy"),
        ("liger_fused_linear_cross_entropy", True, "got liger_fused"),
        ("fsdp_config", {"x": 1}, "whole in every process, got fsdp_config"),
        ("context_parallel_size", 2, "got context_parallel_size"),
        ("deepspeed", "deepspeed_configs/zero3_bf16.json", "ZeRO-3"),
        ("deepspeed", {"zero_optimization": {"stage": 3}}, "ZeRO-3"),
    ):
        with pytest.raises(ValueError, match=said):
            plugin.pre_model_load({**settings, name: value})
    plugin.pre_model_load({**settings, "context_parallel_size": 1, "deepspeed": "zero2.json"})
    for given, said in (
        ({"pact_tokens": "nowhere"}, "does not exist"),
        ({"pact_config": {"lambda": 1}}, "pact_config knows over, .*, got lambda"),
        ({"pact_config": {"kl_weight": -1.0}}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            axolotl.PactArgs(**{**settings, **given})
    with pytest.raises(ValueError, match="a gate needs post-only"):
        plugin.post_model_load({**settings, "pact_config": {"over": "selection"}}, tiny_llama())
    assert torch.is_grad_enabled()
