"""What a training step of a recipe takes, part by part, beside the released algorithm.

A function of sizes and settings: nothing is loaded or measured. Its activations are those that
autograd keeps for the backward pass of the decoder, with weights frozen but for the adapters:

    of each of the T = B L tokens of a micro-batch, in each layer, in bytes,
        norms       n (4 D + 4)             the fp32 input and the scale of each of n norms
        attention   2 * 4 H h + 4 H + 2 L   queries, keys and values of H heads, their output,
                                            log-sum-exp and mask; scores that are capped take the
                                            eager attention: 2 * 3 H h + 8 H L
        MLP         2 * 3 I                 gate, up and the activated gate
        adapters    2 (D_in + 2 r) each     the input, and twice what the first matrix gives
    and 4 D + 4 of the last norm. Checkpointed, 2 D a layer, and the sum of one.

That is for bf16; for fp32 a 4 stands for every 2, which is an upper bound.
`tests/recipes/test_memory.py` holds that against what autograd keeps of small models.

Legend: B sequences, L positions, T tokens, N answer rows, D hidden size, I width of the MLP,
V vocabulary, H heads, h their width, K safety tokens, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from pact.recipes.architecture import Architecture
from pact.recipes.recipe import Recipe
from pact.training.config import TrainConfig
from pact_kernels.dispatch import DEFAULT_WORKSPACE_MIB, MIB

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ADAMW_BYTES = 16
"""Bytes of a trained value: itself, its gradient and two moments, all fp32."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What differs from the recipe; what is unset does not."""

    name: str
    """The recipe, which may stand first without the flag."""
    micro_batch_size: int | None = None
    """Examples of one forward pass."""
    max_length: int | None = None
    """Tokens of each, padding included."""
    gradient_checkpointing: bool | None = None
    """Form each layer's activations again in the backward pass."""
    top_k: int | None = None
    """K."""

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe with these settings, checked as if they stood in it."""
        train = {
            name: getattr(self, name)
            for name in ("micro_batch_size", "max_length", "gradient_checkpointing")
            if getattr(self, name) is not None
        }
        top_k = recipe.discover.top_k if self.top_k is None else self.top_k
        return replace(
            recipe,
            train=replace(recipe.train, **train),
            discover=replace(recipe.discover, top_k=top_k),
        )


class Line(NamedTuple):
    """One part of the plan."""

    part: str
    here: int  # bytes
    released: int  # bytes, the same part of the released algorithm


class MemoryPlan(NamedTuple):
    """What one process needs on its device for a training step, and beside it."""

    title: str
    lines: tuple[Line, ...]
    """What is held at the peak of a step."""
    cache_bytes_per_row: int
    """Bytes of the reference cache on disk, for each answer token of the data."""
    discover: int
    """Bytes of both models' weights."""

    @property
    def here(self) -> int:
        return sum(line.here for line in self.lines)

    @property
    def released(self) -> int:
        return sum(line.released for line in self.lines)


def memory_plan(recipe: Recipe) -> MemoryPlan:
    """Count a recipe's memory.

    Raises:
        ValueError: the recipe trains every weight, or adapts a layer that the family has not.
    """
    train, sizes = recipe.train, recipe.architecture
    if train.full_finetuning:
        raise ValueError("a memory plan counts LoRA adapters, got full_finetuning: turn it off")
    micro_batch = train.micro_batch_size or train.batch_size
    tokens = micro_batch * train.max_length  # T
    weights = sizes.num_parameters * BYTES[train.dtype]
    adapters = adapter_parameters(sizes, train) * ADAMW_BYTES
    activations = activation_bytes(sizes, train)
    # One chunk of the head in 16 bits, of all rows where the cap allows.
    head = min(int(DEFAULT_WORKSPACE_MIB["cuda"] * MIB), 2 * tokens * sizes.vocab_size)
    logits = 3 * tokens * sizes.vocab_size * BYTES["fp32"]
    top_k, rank = recipe.discover.top_k, train.lora_r
    lines = (
        Line(f"weights, frozen, {train.dtype}", weights, weights),
        Line("the reference: a second model", 0, weights),
        Line("adapters, gradients, AdamW, fp32", adapters, adapters),
        Line("activations of the decoder", activations, activations),
        Line("head: workspace | 3 (T, V) fp32 logits", head, logits),
    )
    contexts = 2 if recipe.pact.gate else 1
    return MemoryPlan(
        title=f"{recipe.name}: micro-batch {micro_batch} x {train.max_length} tokens, "
        f"{train.dtype}, LoRA r {rank} on {' '.join(train.lora_targets)}, K {top_k}",
        lines=lines,
        cache_bytes_per_row=contexts * top_k * BYTES[train.cache_dtype] if train.cache else 0,
        discover=2 * sizes.num_parameters * BYTES[recipe.discover.dtype],
    )


def adapter_parameters(sizes: Architecture, train: TrainConfig) -> int:
    """r (in + out) of every adapted matrix."""
    shapes = _adapted(sizes, train)
    return sizes.num_hidden_layers * train.lora_r * sum(a + b for a, b in shapes)


def activation_bytes(sizes: Architecture, train: TrainConfig) -> int:
    """What the decoder keeps for its backward pass; the formula stands at the top of this file."""
    element = BYTES[train.dtype]
    length, d, heads = train.max_length, sizes.hidden_size, sizes.num_attention_heads
    norm = 4 * d + 4
    width = heads * sizes.head_dim
    if sizes.attn_logit_softcapping is None:
        attention = 4 * element * width + 4 * heads + element * length
    else:
        attention = 3 * element * width + (4 + 2 * element) * heads * length
    adapters = sum(element * (a + 2 * train.lora_r) for a, _ in _adapted(sizes, train))
    mlp = 3 * element * sizes.intermediate_size
    layer = sizes.norms_per_layer * norm + attention + adapters + mlp
    layers = sizes.num_hidden_layers * layer
    if train.gradient_checkpointing:
        layers = sizes.num_hidden_layers * element * d + layer
    return (train.micro_batch_size or train.batch_size) * length * (layers + norm)


def plan_table(plan: MemoryPlan) -> str:
    """The plan as text, in GiB."""
    width = max(len(line.part) for line in plan.lines)
    rows = [*plan.lines, Line("sum", plan.here, plan.released)]
    lines = [plan.title, "", f"{'GiB':<{width}}{'here':>9}{'released':>10}"]
    lines += [
        f"{line.part:<{width}}{line.here / GIB:>9.2f}{line.released / GIB:>10.2f}" for line in rows
    ]
    cache = "off: the reference runs at every step"
    if plan.cache_bytes_per_row:
        per_million = 1e6 * plan.cache_bytes_per_row / MIB
        cache = (
            f"{plan.cache_bytes_per_row} bytes an answer token on disk, "
            f"{per_million:.0f} MiB a million"
        )
    lines += [
        "",
        f"reference cache   {cache}",
        f"discovery         {plan.discover / GIB:.2f} GiB of weights: the aligned model, its base",
        "not counted       the backward pass's own buffers, allocator slack, the CUDA context",
    ]
    return "\n".join(lines) + "\n"


def _adapted(sizes: Architecture, train: TrainConfig) -> list[tuple[int, int]]:
    """(in, out) of the matrices of a layer that get an adapter."""
    shapes = sizes.linear_shapes
    for name in train.lora_targets:
        if name not in shapes:
            raise ValueError(f"lora_targets must be among {', '.join(shapes)}, got {name!r}")
    return [shapes[name] for name in train.lora_targets]
