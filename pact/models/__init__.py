"""Causal language models: loaded whole from folders, and seen as a backbone and a head.

`files` is what lies in a folder, `whole` a loader that fills nothing in, `loading` models and
tokenizers by name, `causal` their states and heads, `adapted_head` a head with adapters on it.
"""

from pact.models.causal import (
    backbone,
    base_head,
    captured_states,
    causal_lm,
    check_head,
    check_packing,
    evaluating,
    head_and_states,
    head_weight,
    hidden_states,
    output_head,
    states_and_auxiliary,
)
from pact.models.loading import DTYPES, load_model, load_tokenizer

__all__ = [
    "DTYPES",
    "backbone",
    "base_head",
    "captured_states",
    "causal_lm",
    "check_head",
    "check_packing",
    "evaluating",
    "head_and_states",
    "head_weight",
    "hidden_states",
    "load_model",
    "load_tokenizer",
    "output_head",
    "states_and_auxiliary",
]
