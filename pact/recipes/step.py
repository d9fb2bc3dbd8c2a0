"""What a training step of any model takes on a card: memory, and time from flops and bytes.

The model is made without weights, so its matrices are counted, not guessed. Of T = B L tokens on a
device, N of them answer rows,

    forward     2 T P, P the weights of the matrices that a token meets (of experts those it meets),
                and 2 T L H h of causal attention in each layer
    backward    as much again for the states; and 2 T P for weights that are trained whole
    recomputed  another forward with gradient checkpointing
    head        4 N D V, 6 where it is trained
    reference   a forward where it runs at every step, and one of the answers with a gate

A time is flops over the card's peak by datasheet, a bound that no run reaches; beside it stands the
part of the peak that large products were seen to reach under load on one H200, 0.68. On a processor
the peak is that of a product timed here, of which steps reached 0.63. Traffic of weights in the
optimiser and of gradients between cards is added.

Legend: B sequences, L positions, T tokens, N answer rows, D hidden size, V vocabulary, H heads, h
their width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pact.common.fields import COUNT, Bounds, check_fields

GIB = 2**30
REACHED = 0.68
"""Part of a card's peak: 670 of 989 TFLOP/s, an H200's products of 16384 x 4096 x 128256 in use."""
REACHED_ON_A_CPU = 0.63
"""Part of what a product timed alone reaches: SmolLM2-135M, 4 x 128 tokens in fp32 on two cores,
0.59 in plain steps and 0.67 with a live reference."""
OPTIMIZER_BYTES = 28
"""AdamW's traffic of a trained value: itself, its gradient, both moments read; three written."""


BOUNDS = {
    **dict.fromkeys(("gpus", "sequences", "length", "lora_r"), COUNT),
    "answer_share": Bounds(0, 1, open_least=True),
}
"""Bounds of the settings that are numbers."""


class Card(NamedTuple):
    """A card by its datasheet."""

    tflops: float
    """Dense products of 16 bits."""
    tb_per_s: float
    gib: float
    link_gb_per_s: float
    """Between cards of a node, one way."""


CARDS = {
    "a100": Card(312.0, 2.039, 80, 300),
    "h100": Card(989.4, 3.35, 80, 450),
    "h200": Card(989.4, 4.8, 141, 450),
    "b200": Card(2250.0, 8.0, 180, 900),
    "mi300x": Card(1307.4, 5.3, 192, 448),
}


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """A model, a batch and a machine."""

    model: str
    """A folder or a hub name, of which config.json alone is read."""
    device: Literal["a100", "h100", "h200", "b200", "mi300x", "cpu"] = "h100"
    """The card, or this machine's processor."""
    gpus: int = 1
    """Cards that share the step, each with its own sequences."""
    sequences: int = 4
    """Sequences of a step on each card."""
    length: int = 2048
    """Tokens of each."""
    answer_share: float = 0.5
    """Part of the tokens that is learnt."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of weights and products; what is trained is kept in fp32."""
    full_finetuning: bool = False
    """Train every weight; off trains LoRA adapters on all linear layers."""
    lora_r: int = 16
    """Rank of the adapters."""
    gradient_checkpointing: bool = False
    """Form each layer's activations again in the backward pass."""
    reference: Literal["cached", "live", "none"] = "cached"
    """The frozen model's values: read from a cache, formed at each step, or plain fine-tuning."""
    shard: bool = False
    """Weights, gradients and the optimiser's state sharded over the cards (FSDP)."""

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        if self.device == "cpu" and (self.gpus > 1 or self.shard):
            raise ValueError("gpus and shard are of cards, got device=cpu: leave them out")


class Sizes(NamedTuple):
    """What is counted of a model."""

    parameters: int
    met: int
    """Weights of the matrices that a token meets, the head apart."""
    adapters: int
    """Values of adapters of rank 1 on all linear layers but the head."""
    hidden: int
    vocabulary: int
    layers: int
    heads_width: int
    """H h"""
    mlp: int
    """Width of the MLP that a token meets."""


class StepPlan(NamedTuple):
    """What a step takes on each card."""

    memory_bytes: dict[str, int]
    flops: dict[str, float]
    seconds: dict[str, float]
    """Beside the products: traffic that does not overlap with them."""
    peak_tflops: float
    """The card's by its datasheet, or a product's that was timed here."""
    reached: float
    """The part of the peak that a run is expected to reach."""

    @property
    def bound_s(self) -> float:
        """The least time."""
        return sum(self.flops.values()) / (1e12 * self.peak_tflops)

    @property
    def expected_s(self) -> float:
        return self.bound_s / self.reached + sum(self.seconds.values())


def sizes_of(model_name: str) -> Sizes:
    """Count the matrices of a model that is made without weights.

    Raises:
        ValueError: there is no such model, or no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from pact.models import backbone, base_head
    from pact.models.files import CONFIG, check_json, loading
    from pact.models.loading import find_model

    name = find_model(model_name)
    check_json(Path(name), (CONFIG,))
    with loading(f"{CONFIG} of {name}"), torch.device("meta"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config)
    text, head = config.get_text_config(), base_head(model).weight
    active = _active_experts(text)
    met = adapters = 0
    for name, module in backbone(model).named_modules():
        if isinstance(module, nn.Linear):
            met += module.weight.numel()
            adapters += module.in_features + module.out_features
        elif "experts" in name.rpartition(".")[2]:
            met += int(active * sum(p.numel() for p in module.parameters(recurse=False)))
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    mlp = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        met=met,
        adapters=adapters,
        hidden=head.shape[1],
        vocabulary=head.shape[0],
        layers=text.num_hidden_layers,
        heads_width=width,
        mlp=mlp,
    )


def _active_experts(config: Any) -> float:
    """Part of the experts that a token meets."""
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        count = getattr(config, name, None)
        if count:
            return float(getattr(config, "num_experts_per_tok", 1)) / float(count)
    return 1.0


def step_plan(config: StepConfig, sizes: Sizes) -> StepPlan:
    """Count a step."""
    tokens = config.sequences * config.length
    rows = config.answer_share * tokens
    element = 2 if config.dtype == "bf16" else 4
    trained = sizes.parameters if config.full_finetuning else config.lora_r * sizes.adapters
    forward = 2.0 * tokens * sizes.met
    attention = 2.0 * tokens * config.length * sizes.heads_width * sizes.layers
    flops = {
        "forward": forward + attention,
        "backward": forward + 2 * attention + (forward if config.full_finetuning else 0.0),
        "head": (6 if config.full_finetuning else 4) * rows * sizes.hidden * sizes.vocabulary,
    }
    if config.gradient_checkpointing:
        flops["recomputed"] = forward + attention
    if config.reference == "live":
        flops["reference"] = forward + attention
    parts = config.gpus if config.shard else 1
    weights = sizes.parameters * (4 if config.full_finetuning else element) // parts
    memory = {
        "weights": weights,
        "gradients and AdamW": trained * 12 // parts,
        "activations": _activations(config, sizes, element),
        "head's workspace": min(GIB, int(element * rows * sizes.vocabulary)),
    }
    if not config.full_finetuning:
        memory["adapters"] = 4 * trained // parts
    if config.full_finetuning and config.reference == "live":
        memory["the reference, a copy"] = sizes.parameters * element // parts
    if config.device == "cpu":
        return StepPlan(memory, flops, {}, measured_tflops(sizes, config.dtype), REACHED_ON_A_CPU)
    card = CARDS[config.device]
    peak = card.tflops if config.dtype == "bf16" else card.tflops / 6  # three products of tf32
    seconds = {"optimiser": OPTIMIZER_BYTES * trained / parts / (1e12 * card.tb_per_s)}
    if config.gpus > 1:
        shared = 2 * (config.gpus - 1) / config.gpus
        moved = 4 * trained * shared
        if config.shard:  # every weight is gathered in both passes
            moved += 2 * element * sizes.parameters * (config.gpus - 1) / config.gpus
        seconds["between cards"] = moved / (1e9 * card.link_gb_per_s)
    return StepPlan(memory, flops, seconds, peak, REACHED)


def _activations(config: StepConfig, sizes: Sizes, element: int) -> int:
    """What autograd keeps of a decoder: norms, attention's four parts and the MLP's three."""
    norms = 2 * (4 * sizes.hidden + 4)
    layer = norms + element * (4 * sizes.heads_width + 3 * sizes.mlp)
    if not config.full_finetuning:  # the adapters' inputs
        layer += element * (5 * sizes.hidden + 2 * sizes.mlp)
    layers = sizes.layers * layer
    if config.gradient_checkpointing:
        layers = sizes.layers * element * sizes.hidden + layer
    return config.sequences * config.length * layers


def measured_tflops(sizes: Sizes, dtype: str, rows: int = 512) -> float:
    """The best of three products of a layer's size, on this processor."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    states, weight = torch.randn(rows, sizes.hidden).to(kind), torch.randn(sizes.mlp, sizes.hidden)
    weight = weight.to(kind)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        states @ weight.T
        best = min(best, time.perf_counter() - start)
    return 2e-12 * rows * sizes.hidden * sizes.mlp / best


def plan_text(config: StepConfig, sizes: Sizes, plan: StepPlan) -> str:
    """The plan as a table."""
    total = sum(plan.memory_bytes.values())
    room = "" if config.device == "cpu" else f" of {CARDS[config.device].gib:g}"
    lines = [
        f"{config.model} on {config.gpus} x {config.device}: {sizes.parameters:,} parameters, "
        f"{config.sequences} x {config.length} tokens a card, {config.dtype}",
        "",
        *(f"{name:<24}{size / GIB:>9.2f} GiB" for name, size in plan.memory_bytes.items()),
        f"{'memory, beside slack':<24}{total / GIB:>9.2f} GiB{room}",
        "",
        *(f"{name:<24}{flops / 1e12:>9.2f} TFLOP" for name, flops in plan.flops.items()),
        *(f"{name:<24}{1e3 * seconds:>9.2f} ms" for name, seconds in plan.seconds.items()),
        f"{'a step, at least':<24}{1e3 * plan.bound_s:>9.0f} ms, at {plan.peak_tflops:,.4g} "
        "TFLOP/s",
    ]
    lines.append(
        f"{'a step, about':<24}{1e3 * plan.expected_s:>9.0f} ms, at {plan.reached:.0%} of it"
    )
    tokens_per_s = config.gpus * config.sequences * config.length / plan.expected_s
    lines.append(f"{'tokens a second':<24}{tokens_per_s:>9,.0f}")
    return "\n".join(lines)
