"""The key of a cache: a fingerprint of everything that affects the values in it.

That is the reference's weights and config, the precision of its products, the examples' ids and
labels (so tokenizer, template and cut), the assistant header, the safety tokens, and what is kept
of them. Left out is what changes rounding at most: device, attention implementation, batch size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from pact.models import causal_lm
from pact.objective import PactObjective
from pact.objective.pact import holds_anchors_only
from pact.reference.columns import read_columns
from pact.reference.live import AdaptersOff, FrozenModel, adapter_prefixes
from pact.reference.shards import FORMAT_VERSION

NO_EFFECT = {
    "_name_or_path",
    "_attn_implementation",
    "attn_implementation",
    "transformers_version",
    "dtype",  # each weight has its own
    "torch_dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
"""Entries of a model's config that do not touch hidden states or logits."""


def cache_key(
    dataset: Sequence[Mapping[str, Any]] | Any,
    reference: AdaptersOff | FrozenModel,
    objective: PactObjective,
    header_ids: Sequence[int],
    *,
    dtype: str = "fp16",
    compute_dtype: str = "fp32",
) -> str:
    """32 hexadecimal digits that name the cache's folder.

    A model without adapters and a student whose adapters are switched off have the same key.

    Args:
        dataset: examples with `input_ids` and `labels`.
        reference: the frozen model; of an `AdaptersOff` the adapters do not count.
        objective: its safety tokens, `over`, whether it has a gate and whether it holds anchors
            alone count; its numbers do not.
        header_ids: the assistant header, which counts with a gate alone.
        dtype: what the values are kept in, "fp16" or "fp32".
        compute_dtype: "bf16" where the products run under autocast.
    """
    gate = objective.needs_post_only
    columns = read_columns(dataset, holds_anchors_only(objective))
    facts = {
        "format": FORMAT_VERSION,
        "weights": weights_fingerprint(reference),
        "config": _plain(causal_lm(reference.model).config.to_dict()),
        "compute_dtype": compute_dtype,
        "examples": {name: _digest(column) for name, column in columns._asdict().items()},
        "header": [int(token) for token in header_ids] if gate else None,
        "tokens": objective.token_ids.tolist(),
        "over": objective.config.over,
        "gate": gate,
        "dtype": dtype,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def weights_fingerprint(reference: AdaptersOff | FrozenModel) -> str:
    """A digest of the reference's weights and buffers, by name, dtype, shape and content.

    Of an `AdaptersOff` its adapters are left out, trained or not: all are switched off. Buffers
    that a model does not save, like the rotary frequencies, follow from its config.
    """
    off = isinstance(reference, AdaptersOff)
    skipped = (*adapter_prefixes(reference.model), "modules_to_save.") if off else ()
    digest = _digest_of_state(causal_lm(reference.model), skipped)
    adapters = {} if off else getattr(reference.model, "peft_config", {})
    for name, config in sorted(adapters.items()):  # their scales are in no tensor
        digest.update(json.dumps([name, config.to_dict()], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """A digest of a model without adapters: its weights, buffers and config."""
    digest = _digest_of_state(model, ())
    config = _plain(causal_lm(model).config.to_dict())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _digest_of_state(model: nn.Module, skipped: Sequence[str]) -> xxhash.xxh3_128:
    digest = xxhash.xxh3_128()
    state = model.state_dict()
    for name, tensor in sorted((_bare_name(name), value) for name, value in state.items()):
        if not any(part in name for part in skipped):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes_of(tensor))
    return digest


def _bare_name(name: str) -> str:
    """The name that a weight has before adapters wrap its module."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(array: np.ndarray) -> str:
    return xxhash.xxh3_128(np.ascontiguousarray(array).data).hexdigest()


def _plain(config: Any) -> Any:
    """A config without what has no effect, at any depth."""
    if not isinstance(config, dict):
        return config
    return {name: _plain(value) for name, value in config.items() if name not in NO_EFFECT}
