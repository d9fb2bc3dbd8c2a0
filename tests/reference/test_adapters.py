"""Which adapters can be switched off to have the aligned model: those whose base is still it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

from pact.objective import PactConfig
from pact.reference import AdaptersOff, FrozenModel
from pact.training.config import FitConfig
from pact.training.loop import fit
from tests.rounding import NO_KL_ACROSS
from tests.tiny import tiny_llama
from tests.training.problem import problem

IDS = torch.arange(3, 15)[None]
TARGETS = ["q_proj", "v_proj"]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, **options})


def states(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.get_base_model().get_decoder()(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"layer_replication": [(0, 2), (0, 2)]}, "layer_replication"),
    ],
)
def test_adapters_that_change_their_base_are_refused(options: dict[str, Any], name: str) -> None:
    model = get_peft_model(tiny_llama(), lora(**options)).eval()
    with model.disable_adapter():
        off = states(model)
    aligned = states(get_peft_model(tiny_llama(), lora()))
    assert (off - aligned).abs().max() > 0.1  # that is the fault
    with pytest.raises(ValueError, match=f"got {name} of adapter 'default'.*made before the adap"):
        AdaptersOff(model)


@pytest.mark.parametrize("begun", ["corda", "loftq", "some_new_way"])
def test_named_ways_to_begin_are_refused_unless_they_are_known(begun: str) -> None:
    model = get_peft_model(tiny_llama(), lora())
    model.peft_config["default"].init_lora_weights = begun
    with pytest.raises(ValueError, match=f"init_lora_weights='{begun}'"):
        AdaptersOff(model)


def test_a_frozen_copy_holds_what_adapters_off_cannot() -> None:
    """The fix that the error names: the student begins where its reference is."""
    given = problem(PactConfig(over="vocabulary"))
    reference = FrozenModel(copy.deepcopy(tiny_llama()))
    student = get_peft_model(tiny_llama(), lora(init_lora_weights="pissa"))
    config = FitConfig(max_steps=1)
    (record,) = fit(student, given.dataset, given.objective, reference, given.collator, config)
    assert abs(record["kl"]) < NO_KL_ACROSS


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        lora(init_lora_weights=False),  # trained, or drawn at random: its base is still there
        lora(init_lora_weights="gaussian"),
        lora(init_lora_weights="orthogonal"),
        lora(use_dora=True),
        lora(use_rslora=True),
        LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS),
        IA3Config(task_type="CAUSAL_LM", target_modules=TARGETS, feedforward_modules=[]),
        VeraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS),
        OFTConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
        BOFTConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
        LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]),
    ],
    ids=lambda config: f"{config.peft_type.value} {getattr(config, 'init_lora_weights', '')}",
)
def test_other_adapters_are_the_aligned_model_when_they_are_off(config: Any) -> None:
    aligned = states(get_peft_model(tiny_llama(), lora()).eval())
    model = get_peft_model(tiny_llama(), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert (states(model) - aligned).abs().max() > 1e-3
    AdaptersOff(model)
    with model.disable_adapter():
        torch.testing.assert_close(states(model), aligned)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learnt_prompt_is_no_part_of_the_backbone(config: Any) -> None:
    given = problem(PactConfig(over="selection"))
    model = get_peft_model(tiny_llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="a learnt prompt: use LoRA"):
        AdaptersOff(model)
    with pytest.raises(ValueError, match="learnt prompt|no part of its layers"):
        given.fit(model, FitConfig(max_steps=1))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
)
def test_adapters_on_embeddings_that_the_head_shares_are_refused(options: dict[str, Any]) -> None:
    """Merged, or saved and loaded, the model would be another one."""
    given = problem(None)
    student = get_peft_model(tiny_llama(tied=True), lora(**options))
    with pytest.raises(ValueError, match="adapters on the embeddings need embeddings of their own"):
        given.fit(student, FitConfig(max_steps=1))
    if options == {"target_modules": ["embed_tokens"]}:
        untied = get_peft_model(tiny_llama(), lora(**options))
        given.fit(untied, FitConfig(max_steps=1))


def test_an_adapted_tied_head_is_refused() -> None:
    with pytest.raises(ValueError, match="on the head need|must be a plain nn.Linear, got peft"):
        student = get_peft_model(tiny_llama(tied=True), lora(target_modules=["lm_head"]))
        problem(None).fit(student, FitConfig(max_steps=1))


def two_adapters() -> Any:
    """One that makes the model what it is, and one to train."""
    model = get_peft_model(tiny_llama(), lora(init_lora_weights=False), adapter_name="aligned")
    model.add_adapter("new", lora())
    model.base_model.set_adapter(["aligned", "new"])
    return model


def test_an_active_adapter_that_is_not_trained_is_a_part_of_the_model() -> None:
    model = two_adapters()
    AdaptersOff(model)  # both are trained
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".new." in name)
    with pytest.raises(ValueError, match="got 'aligned' active and not trained beside 'new'"):
        AdaptersOff(model)
    model.base_model.set_adapter("new")
    AdaptersOff(model)  # the other is in no forward
    AdaptersOff(model.requires_grad_(False))  # nothing is trained, as where a drift is measured
