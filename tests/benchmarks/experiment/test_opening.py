"""The odds of opening with a refusal, against whole logits of the same model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.experiment.measuring import opening_odds
from pact.data.template import prompt_text
from pact.discovery import SafetyTokens
from tests.tiny import tiny_llama, tiny_tokenizer

CONVERSATIONS = [
    [
        {"role": "user", "content": "Bake a loaf" + " please" * count},
        {"role": "assistant", "content": "Sure, here is how."},
    ]
    for count in range(3)
]


def test_odds_are_those_of_the_models_own_logits() -> None:
    """Three prompts in batches of two; a token of weight below 0, and the rival, do not count."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    rival = tokenizer("Sure", add_special_tokens=False)["input_ids"][0]
    ids = sorted({7, 40, 41, rival})
    weights = torch.ones(len(ids))
    weights[ids.index(40)] = -1.0
    tokens = SafetyTokens(torch.tensor(ids), weights)
    found = opening_odds(model, tokenizer, CONVERSATIONS, tokens, "Sure, here", batch_size=2)
    want = []
    for turns in CONVERSATIONS:
        text = prompt_text(turns[:-1], tokenizer)
        prompt = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        z = model(input_ids=prompt).logits[0, -1].double()
        want.append(z[[7, 41]].logsumexp(-1) - z[rival])
    assert found == pytest.approx(torch.stack(want).mean().item(), rel=1e-5)
