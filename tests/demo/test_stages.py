"""The demo's stages on a tiny model."""

from __future__ import annotations

import pytest
import torch

from pact.data.dataset import encode_examples
from pact.demo.conversations import MAX_LENGTH, read
from pact.demo.stages import fewer
from pact.discovery import discover
from tests.rounding import SUMS
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("top_k", [40, 20, 2])
def test_fewer_tokens_are_those_that_discovery_would_find(top_k: int) -> None:
    tokenizer = tiny_tokenizer()
    refusals = encode_examples(read("harmful", "train")[:4], tokenizer, MAX_LENGTH)
    models = tiny_llama(seed=0), tiny_llama(seed=1)
    options = {"max_response_length": 8, "tokenizer": tokenizer, "progress": False}
    many, wanted = (discover(*models, refusals, top_k=k, **options) for k in (40, top_k))
    found = fewer(many, top_k)
    assert found.ids.tolist() == wanted.ids.tolist()
    for name in ("weights", "aligned_confidence", "base_confidence"):
        values, others = getattr(found, name), getattr(wanted, name)
        # differences in fp32, not fp64: 6e-8 of confidences below 0.1, over spreads beyond 1e-3
        torch.testing.assert_close(values, others, rtol=SUMS, atol=1e-5)
    assert found.metadata == wanted.metadata
