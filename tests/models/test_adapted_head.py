"""LoRA on the output head: one wider head, whose logits and gradients are the adapted layer's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import pact
from pact.discovery import SafetyTokens
from pact.models import adapted_head, check_head, head_and_states, hidden_states, output_head
from pact.objective import PactObjective
from pact.reference import AdaptersOff
from pact.training.student import batch_loss
from tests.families import tiny
from tests.integrations.test_transformers_models import batch, gradients
from tests.objectives import matching
from tests.rounding import STATES, SUMS
from tests.tiny import tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, largest_error, problem

HEADS = {"llama": "lm_head", "gemma 2": "lm_head", "cohere": "lm_head", "phi": "lm_head"}


def adapted(model: Any, head: str = "lm_head", **options: Any) -> Any:
    """Adapters on the head and on a projection, moved off their start."""
    given = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "init_lora_weights": False}
    targets = [head, "q_proj"]
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=targets, **{**given, **options})).train()


def untied(family: str) -> Any:
    """Bias, soft cap and scale as the family has them, the head's weight its own."""
    model = tiny(family)
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return model


@pytest.mark.parametrize("family", HEADS)
def test_logits_losses_and_gradients(family: str) -> None:
    model = adapted(untied(family), HEADS[family])
    check_head(model)
    given = batch()
    own = model(**given)
    expected = gradients(model, own.loss)
    assert any("lm_head.lora_B" in name for name in expected)
    states = hidden_states(model, given["input_ids"], given["attention_mask"])
    wider, head = head_and_states(model, states)
    assert head.weight.shape[1] == wider.shape[-1] == states.shape[-1] + 3
    logits = head.finish_(wider @ head.weight.detach().T)
    torch.testing.assert_close(logits, own.logits, rtol=STATES, atol=STATES)
    pact.patch(model)
    out = model(**given)
    assert out.logits is None
    torch.testing.assert_close(out.loss, own.loss, rtol=SUMS, atol=SUMS)
    assert largest_error(gradients(model, out.loss), expected) < STATES


def test_two_adapters_are_a_sum() -> None:
    model = adapted(untied("llama"))
    model.add_adapter("more", LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    model.base_model.set_adapter(["default", "more"])
    own = model(**batch())
    found = pact.patch(model)(**batch())
    torch.testing.assert_close(found.loss, own.loss, rtol=SUMS, atol=SUMS)


def test_pact_holds_it_to_the_head_below() -> None:
    """The reference is the model without adapters, its head too; a cache is filled with that."""
    config = matching("vocabulary", gate=False)
    given = problem(config, count=4)
    collated = given.collator([given.dataset[n] for n in range(4)])
    model = adapted(tiny_llama())
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, config)
    with torch.no_grad():
        loss = batch_loss(model, objective, AdaptersOff(model), collated)
        plain = batch_loss(tiny_llama(), objective, AdaptersOff(model), collated)
    assert float(loss.kl) > 1e-3 and float(plain.kl) < 1e-6
    pact.patch(model, tokens=SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS), pact=config)
    names = ("input_ids", "attention_mask", "labels")
    out = model(**{name: collated[name] for name in names})
    torch.testing.assert_close(out.loss.detach(), loss.loss, rtol=SUMS, atol=SUMS)
    with model.disable_adapter():
        assert output_head(model).weight.shape == (320, 32)
    with pytest.raises(ValueError, match="got one with adapters on it"):
        output_head(model)


def test_the_matrix_is_made_once_and_anew_where_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made = adapted(untied("llama")), []
    own = adapted_head._Joined

    def noted(*args: Any) -> Any:
        made.append(args)
        return own(*args)

    monkeypatch.setattr(adapted_head, "_Joined", noted)
    pact.patch(model)
    first = model(**batch()).loss
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first.backward()
    optimizer.step()
    second = model(**batch()).loss
    assert len(made) <= 1 and float(second.detach()) != float(first.detach())
    base = model.get_base_model().lm_head.base_layer.weight
    with torch.no_grad():
        base.mul_(0.5)
    third = model(**batch()).loss
    pact.unpatch(model)
    torch.testing.assert_close(third, model(**batch()).loss, rtol=SUMS, atol=SUMS)


def test_what_is_no_sum_of_products_is_refused() -> None:
    hidden: Tensor = torch.zeros(1, 16)
    model = adapted(untied("llama"), use_dora=True)
    with pytest.raises(ValueError, match="must be LoRA's B A alone, got adapter 'default'"):
        head_and_states(model, hidden)
    model = adapted(untied("llama"))
    model.get_base_model().lm_head.base_layer.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="must be frozen"):
        head_and_states(model, hidden)
    model.get_base_model().lm_head.base_layer.weight.requires_grad_(False)
    model.merge_adapter()
    with pytest.raises(ValueError, match="are merged"):
        head_and_states(model, hidden)
