from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import pact_kernels as pk
from pact.data.template import IGNORE, encode
from pact.discovery import SafetyTokens
from pact.evaluation.drift import Drift, measure_drift
from pact.reference import AdaptersOff, FrozenModel
from tests.evaluation.test_heldout import PAIRS
from tests.rounding import STATES
from tests.tiny import tiny_llama, tiny_tokenizer

# unequal weights, one of them negative: drift must not depend on them
TOKENS = SafetyTokens(torch.tensor([3, 41, 97, 300, 319]), torch.tensor([0.5, -0.2, 0.1, 0.7, 0.0]))


def drift(model: Any, reference: Any, batch_size: int = 2) -> Drift:
    return measure_drift(
        model, tiny_tokenizer(), PAIRS, TOKENS, reference, batch_size=batch_size, progress=False
    )


def dense_log_p(model: Any) -> tuple[Tensor, Tensor]:
    """log P over the vocabulary at the answer rows, (N, V), and which are first, (N,)."""
    rows, first = [], []
    for turns in PAIRS:
        encoded = encode(turns, tiny_tokenizer())
        with torch.no_grad():
            logits = model.double()(input_ids=torch.tensor([encoded.input_ids])).logits[0, :-1]
        labelled = torch.tensor(encoded.labels) != IGNORE
        rows.append(logits[labelled[1:]].log_softmax(-1))
        first.append((~labelled[:-1])[labelled[1:]])
    return torch.cat(rows), torch.cat(first)


def with_adapters() -> Any:
    """A tiny model whose adapters do something: LoRA starts at 0."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_model_has_not_drifted_from_itself() -> None:
    found = drift(tiny_llama(), FrozenModel(tiny_llama()))
    assert found.kl_vocabulary_nats == pytest.approx(0, abs=1e-7)
    assert found.kl_selection_nats == pytest.approx(0, abs=1e-7)
    assert found.mean_difference == 0
    assert found.confidence == found.reference_confidence > 0
    assert found.first_confidence == found.first_reference_confidence > 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_drift_is_the_dense_formula(batch_size: int) -> None:
    found = drift(tiny_llama(seed=0), FrozenModel(tiny_llama(seed=1)), batch_size)
    own, first = dense_log_p(tiny_llama(seed=0))
    other, _ = dense_log_p(tiny_llama(seed=1))
    ids = TOKENS.ids
    p, q = own[:, ids].exp(), other[:, ids].exp()  # (N, K)
    p_rest, q_rest = 1 - p.sum(-1), 1 - q.sum(-1)
    vocabulary = (q * (q / p).log()).sum(-1) + q_rest * (q_rest / p_rest).log()
    log_p, log_q = own[:, ids].log_softmax(-1), other[:, ids].log_softmax(-1)
    selection = (log_q.exp() * (log_q - log_p)).sum(-1)
    expected = {
        "kl_vocabulary_nats": vocabulary.mean().item(),
        "kl_selection_nats": selection.mean().item(),
        "confidence": p.sum(-1).mean().item(),
        "reference_confidence": q.sum(-1).mean().item(),
        "first_confidence": p.sum(-1)[first].mean().item(),
        "first_reference_confidence": q.sum(-1)[first].mean().item(),
        "mean_difference": (p.sum(-1) - q.sum(-1)).abs().mean().item(),
        "rows": first.numel(),
        "answers": 4,  # PAIRS has three conversations, one with two answers
    }
    assert asdict(found) == pytest.approx(expected, rel=STATES)


def test_drift_from_the_model_without_its_adapters() -> None:
    model = with_adapters()
    assert drift(model, AdaptersOff(model)) == drift(model, FrozenModel(tiny_llama()))
    assert drift(model, AdaptersOff(model)).mean_difference > 1e-4


def test_a_cached_reference_is_refused() -> None:
    def cached(batch: Mapping[str, Tensor]) -> pk.ReferenceLogits:
        return pk.ReferenceLogits(torch.zeros(batch["row_target"].numel(), 5))

    with pytest.raises(ValueError, match="got function with cached logits"):
        drift(tiny_llama(), cached)
