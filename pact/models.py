"""Causal language models as the method sees them: a backbone with hidden states, and a head.

Legend: B sequences, L positions, D hidden size, V vocabulary (rows of the head).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Head(NamedTuple):
    """The map from a hidden state h to logits: softcap(logit_scale * (weight h + bias))."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    softcap: float | None
    logit_scale: float

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that every op of `pact_kernels` takes beside the weight."""
        return {"bias": self.bias, "softcap": self.softcap, "logit_scale": self.logit_scale}


def load_model(name_or_path: str | Path, *, dtype: str = "fp32") -> Any:
    """Load a causal language model in evaluation mode; a folder with adapters loads its base too.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a hub name.
        dtype: "fp32", "bf16" or "fp16".

    Raises:
        ValueError: the folder does not exist or holds no model; the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    path = _existing(name_or_path)
    if (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    return model.eval()


def load_tokenizer(name_or_path: str | Path) -> Any:
    """Load a tokenizer; a missing pad token becomes the end-of-sequence token."""
    tokenizer = AutoTokenizer.from_pretrained(_existing(name_or_path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside `model`: data-parallel and PEFT wrappers are taken off."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Final hidden states of the backbone, (B, L, D), the head left out.

    Args:
        model: a causal language model, with or without PEFT adapters, which apply as they are set.
        input_ids: (B, L) int64, right-padded.
        attention_mask: (B, L) int64, 1 on tokens and 0 on padding.
    """
    decoder = causal_lm(model).get_decoder()
    out = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return out.last_hidden_state


def output_head(model: nn.Module) -> Head:
    """Read the head of `model`: weight, bias, soft cap and logit scale as its config states them.

    Gemma's `final_logit_softcapping`, Cohere's `logit_scale` and Granite's `logits_scaling` (a
    divisor) are known; `check_head` finds any model whose head does something else.

    Raises:
        ValueError: the head is wrapped by an adapter, so its weight alone is not its map.
    """
    causal = causal_lm(model)
    linear = causal.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"the output head must be a plain nn.Linear, got {type(linear).__name__}: take it "
            "out of the adapter's target_modules and modules_to_save, or merge the adapter first"
        )
    config = causal.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, float(softcap) if softcap else None, scale)


@torch.no_grad()
def check_head(model: nn.Module, tokens: int = 8) -> None:
    """Compare the logits formed by `output_head` with the model's own on a few tokens, once.

    Raises:
        ValueError: they differ, so the model's head applies something that `Head` does not express.
    """
    causal = causal_lm(model)
    head = output_head(model)
    ids = torch.arange(1, tokens + 1, device=head.weight.device)[None]  # (1, L)
    own = causal(input_ids=ids, use_cache=False).logits[0].float()
    states = hidden_states(model, ids, torch.ones_like(ids))[0]  # (L, D)
    ours = nn.functional.linear(states, head.weight, head.bias).float() * head.logit_scale
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    scale = own.abs().max().clamp(min=1.0)
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
    error = ((own - ours).abs().max() / scale).item()
    if not error <= tolerance:
        raise ValueError(
            f"the logits of {type(causal).__name__} must be softcap(logit_scale * (W h + b)), and "
            f"differ by {error:.1e} of their size: its head does what its config does not name, "
            "and is not supported"
        )


def _existing(name_or_path: str | Path) -> str:
    """`name_or_path`, unless it is meant as a local path and is not there."""
    text = str(name_or_path)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    path = Path(text).expanduser()
    if looks_local and not path.is_dir():
        raise ValueError(
            f"model folder {text} does not exist: give a folder with config.json, or a hub name"
        )
    return str(path) if path.is_dir() else text
