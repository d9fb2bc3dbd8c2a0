"""Causal language models as the method sees them: a backbone with hidden states, and a head.

Legend: B sequences, L positions, D hidden size, V vocabulary (rows of the head).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pact.models.adapted_head import adapted_head, base_linear, is_adapted
from pact_kernels.types import Head


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside `model`: data-parallel and PEFT wrappers are taken off."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def backbone(model: nn.Module) -> Any:
    """What makes hidden states of a causal language model, without its head.

    Raises:
        ValueError: it has none, or an encoder beside it.
    """
    causal = causal_lm(model)
    decoder = causal.get_decoder() if hasattr(causal, "get_decoder") else None
    if decoder is causal:  # Llama 4's text model has no prefix that get_decoder would know
        decoder = getattr(causal, "model", None)
    config = getattr(causal, "config", None)
    if decoder is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            "the model must be a causal language model of transformers, whose get_decoder() gives "
            f"its backbone, got {type(causal).__name__}: load it with AutoModelForCausalLM"
        )
    return decoder


def hidden_states(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Final hidden states of the backbone, (B, L, D), the head left out.

    With `position_ids` a line holds several sequences end to end, and attention stays within each.
    Transformers forms the mask for it from the positions, where it is given no other mask and no
    cache; flash attention reads them too, but from a batch of one line alone. `check_packing`
    finds the models that do neither.

    Args:
        model: a causal language model, with or without PEFT adapters, which apply as they are set.
        input_ids: (B, L) int64, right-padded.
        attention_mask: (B, L) int64, 1 on tokens and 0 on padding.
        position_ids: (B, L) int64, from 0 in every sequence, padding included; None has one
            sequence a line.
    """
    decoder = backbone(model)

    def run(**inputs: Tensor) -> Tensor:
        states: Tensor = decoder(**inputs, use_cache=False).last_hidden_state
        return states

    return _run(run, decoder, input_ids, attention_mask, position_ids)


def states_and_auxiliary(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`hidden_states`, and the loss by which a model of experts balances them, or None.

    It is the model's own, times its coefficient, where its config has `output_router_logits`.
    """
    causal = causal_lm(model)
    config = causal.config.get_text_config()
    weight = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
    if not getattr(config, "output_router_logits", False) or not weight:
        return hidden_states(model, input_ids, attention_mask, position_ids), None
    auxiliary: list[Tensor | None] = []

    def run(**inputs: Tensor) -> Tensor:
        own = type(causal).forward  # an instance's may be exchanged for several processes
        with captured_states(causal) as states:
            auxiliary.append(getattr(own(causal, **inputs, use_cache=False), "aux_loss", None))
        return states[0]

    states = _run(run, backbone(model), input_ids, attention_mask, position_ids)
    if not isinstance(auxiliary[0], Tensor):
        raise ValueError(
            f"{type(causal).__name__} gives no auxiliary loss, though its config asks for it: set "
            "output_router_logits=False to train without"
        )
    return states, weight * auxiliary[0]


def _run(
    run: Callable[..., Tensor],
    decoder: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None,
) -> Tensor:
    """(B, L, D) of a function of the backbone's inputs."""
    if position_ids is None:
        return run(input_ids=input_ids, attention_mask=attention_mask)
    if "flash" not in str(decoder.config._attn_implementation):
        return run(input_ids=input_ids, position_ids=position_ids)
    tokens = attention_mask.bool()
    ids, positions = input_ids[tokens][None], position_ids[tokens][None]  # (1, T), padding left out
    packed = run(input_ids=ids, position_ids=positions)[0]
    states = packed.new_zeros(*tokens.shape, packed.shape[-1])  # (B, L, D)
    states[tokens] = packed
    return states


@contextmanager
def captured_states(causal: Any) -> Iterator[list[Tensor]]:
    """What the output head is given while a model runs; its own result then has width 0.

    Scales, caps and casts of logits of width 0 cost nothing. It may be entered again within, for
    another run of the same model.
    """
    states: list[Tensor] = []
    head = causal.get_output_embeddings()

    def capture(hidden: Tensor) -> Tensor:
        states.append(hidden)
        return hidden.new_empty(*hidden.shape[:-1], 0)

    own = head.__dict__.get("forward")
    head.forward = capture
    try:
        yield states
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def output_head(model: nn.Module) -> Head:
    """Read the head of `model`: weight, bias, soft cap and logit scale as its config states them.

    Gemma's `final_logit_softcapping`, Cohere's `logit_scale`, Falcon-H1's `lm_head_multiplier`,
    Muse's `output_multiplier` and Granite's `logits_scaling` (a divisor there) are known;
    `check_head` finds any model whose head does something else.

    With LoRA adapters on the head that are switched off it is the layer below them.

    Raises:
        ValueError: the head is wrapped by an adapter or is another kind of layer, so its weight
            alone is not its map; `head_and_states` knows LoRA's.
    """
    layer = _head_layer(model)
    if is_adapted(layer):
        raise ValueError(
            "the output head must be a plain nn.Linear, got one with adapters on it: call "
            "head_and_states, or switch them off"
        )
    return _plain_head(model, layer)


def base_head(model: nn.Module) -> Head:
    """The head without whatever adapters are on it."""
    return _plain_head(model, _head_layer(model))


def head_weight(model: nn.Module) -> Tensor:
    """(V, D) of the head, without whatever adapters are on it."""
    return base_head(model).weight


def head_and_states(model: nn.Module, hidden: Tensor) -> tuple[Tensor, Head]:
    """The states and the head that together give the model's logits, adapters as they are set.

    They are `hidden` and `output_head(model)` but for LoRA adapters on the head, which make both
    wider, see `pact.models.adapted_head`.

    Args:
        model: a causal language model.
        hidden: (..., D) states of its backbone.
    """
    layer = _head_layer(model)
    head = _plain_head(model, layer)
    return adapted_head(layer, head, hidden) if is_adapted(layer) else (hidden, head)


def _head_layer(model: nn.Module) -> Any:
    causal = causal_lm(model)
    backbone(causal)
    return causal.get_output_embeddings()


def _plain_head(model: nn.Module, layer: Any) -> Head:
    linear: Any = base_linear(layer)
    if not isinstance(linear, nn.Linear):
        kind = f"{type(linear).__module__}.{type(linear).__qualname__}"
        is_adapted = kind.startswith("peft.")
        raise ValueError(
            f"the output head must be a plain nn.Linear, got {kind}"
            + (", an adapter's" if is_adapted else "")
            + ": "
            + (
                "take it out of the adapter's target_modules and modules_to_save, or merge the "
                "adapter first"
                if is_adapted
                else "load the model with its head as it is, not quantised or replaced"
            )
        )
    config = causal_lm(model).config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, float(softcap) if softcap else None, _scale(config))


FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names under which configs have a factor on the logits."""
DIVISOR = "logits_scaling"
MULTIPLIED = ("hyperclovax",)
"""Model types, by their beginning, that multiply by what others divide by."""


def _scale(config: Any) -> float:
    scale = 1.0
    for name in FACTORS:
        value = getattr(config, name, None)
        scale *= 1.0 if value is None else float(value)
    divisor = getattr(config, DIVISOR, None)
    if divisor is None:
        return scale
    multiplied = str(getattr(config, "model_type", "")).startswith(MULTIPLIED)
    return scale * float(divisor) if multiplied else scale / float(divisor)


@torch.no_grad()
def check_head(model: nn.Module, tokens: int = 8) -> None:
    """Compare the logits formed by `output_head` with the model's own on a few tokens, once.

    Adapters apply as they are set, so that adapters which are no part of the backbone, a learnt
    prompt for one, are found as well.

    Raises:
        ValueError: they differ, so the model's head applies something that `Head` does not express;
            or the model's own are not finite.
    """
    causal = causal_lm(model)
    weight = head_weight(model)
    ids = torch.arange(1, tokens + 1, device=weight.device)[None]  # (1, L)
    ids = ids.clamp(max=weight.shape[0] - 1)
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]  # what wraps it for several processes
    with evaluating(model):
        _compare_logits(model, causal, ids)


def _compare_logits(model: nn.Module, causal: Any, ids: Tensor) -> None:
    logits = model(input_ids=ids, use_cache=False).logits[0]  # (L, V)
    own, own_dtype = logits.float(), logits.dtype
    if own.shape[0] != ids.shape[1]:
        raise ValueError(
            f"{type(model).__name__} must give one row of logits for every token, got "
            f"{own.shape[0]} for {ids.shape[1]}: adapters that put a learnt prompt before the "
            "tokens are not supported; use LoRA"
        )
    if not bool(own.isfinite().all()):
        kind = str(own_dtype).removeprefix("torch.")
        raise ValueError(
            f"the logits of {type(causal).__name__} must be finite, got NaN or infinity on a few "
            f"tokens in {kind}: its weights are damaged, or beyond this precision; look at it in "
            "fp32"
        )
    states = hidden_states(model, ids, torch.ones_like(ids))[0]  # (L, D)
    states, head = head_and_states(model, states)
    ours = nn.functional.linear(states, head.weight, head.bias).float() * head.logit_scale
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    scale = own.abs().max().clamp(min=1.0)
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
    error = ((own - ours).abs().max() / scale).item()
    if not error <= tolerance:
        raise ValueError(
            f"the logits of {type(causal).__name__} must be softcap(logit_scale * (W h + b)), and "
            f"differ by {error:.1e} of their size: its head does what its config does not name, or "
            "its adapters are no part of its layers, and is not supported"
        )


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Compare the states of two short sequences in packed lines with those apart, once.

    Raises:
        ValueError: they differ, or the model takes no positions: its layers look across sequences,
            as recurrent ones do, or its masks are not made from positions.
    """
    causal = causal_lm(model)
    name = type(causal).__name__
    fix = "train it with packing off (padded batches)"
    if "position_ids" not in inspect.signature(backbone(causal).forward).parameters:
        raise ValueError(f"packing needs a model that takes position_ids, got {name}: {fix}")
    weight = head_weight(model)
    # Sequences of 4 and of 5 tokens; then that of 5 again and 4 of padding.
    ids = torch.arange(2 * 9, device=weight.device).reshape(2, 9)  # (B, L)
    ids[1, :5] = ids[0, 4:]
    ids %= weight.shape[0]
    places = torch.arange(9, device=weight.device)  # (L,)
    positions = torch.stack([torch.where(places < 4, places, places - 4), places % 5])
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with evaluating(model):
        packed = hidden_states(model, ids, mask, positions).float()  # (B, L, D)
        first = hidden_states(model, ids[:1, :4], mask[:1, :4])[0].float()  # (4, D)
        second = hidden_states(model, ids[:1, 4:], mask[:1, 4:])[0].float()  # (5, D)
    ours = torch.cat([packed[0], packed[1, :5]])
    apart = torch.cat([first, second, second])
    error = ((ours - apart).norm(dim=-1) / apart.norm(dim=-1).clamp(min=1e-6)).max().item()
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    if not error <= (1e-3 if exact else 0.1):
        raise ValueError(
            f"states of packed sequences must be those of the sequences apart, and differ by "
            f"{error:.1e} of their size in {name}, whose layers look across sequences: {fix}"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the mode of every module is put back after."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
