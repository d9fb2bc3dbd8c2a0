"""The training step on a GPU: a randomly initialised model of 8B parameters in bfloat16, with LoRA.

Weights that mean nothing cost what others do. Nothing is read but code: there is no model to fetch
and no tokenizer. Memory is the allocator's peak over a side's second step, the model and all else
that the side needs included. A side that does not fit is left out, and said to be.

Legend: B sequences, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measuring.clock import take_turns, time_ms
from benchmarks.peers.liger import DISTRIBUTION, Liger
from benchmarks.peers.peer import installed_version
from benchmarks.training.sides import (
    CACHED,
    FUSED,
    LIVE,
    OWN,
    RELEASED,
    SIDES,
    LossOf,
    Setting,
    Task,
    apart,
    take_step,
)
from pact.models import hidden_states, output_head

LIGER = "plain, Liger's loss"
LIGER_BUDGET = 4
"""The fastest one on an H200 for a head of this size."""
EQUALS = ((RELEASED, LIVE), (CACHED, LIVE), (OWN, FUSED))
"""Sides with one meaning."""
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    tie_word_embeddings=False,
)


class OnCard(NamedTuple):
    """What was measured there, by side."""

    steps_ms: dict[str, list[float]]
    peak_mib: dict[str, float]
    left_out: dict[str, str]
    """Why."""
    differences: dict[str, float]
    """Relative differences between the gradients of sides with one meaning."""


def random_model(config: LlamaConfig, device: torch.device | str) -> Any:
    """In bfloat16, made where it is used."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def liger_loss(setting: Setting, task: Task) -> LossOf:
    """Plain fine-tuning with Liger's fused loss on answer rows."""
    loss = Liger().load({"budget": LIGER_BUDGET, "accumulate": None})
    batch, student = task.batch(gate=False), setting.student

    def forward() -> torch.Tensor:
        states = hidden_states(student, batch["input_ids"], batch["attention_mask"])  # (B, L, D)
        rows = states[batch["row_sequence"], batch["row_position"]]
        return loss(rows, output_head(student).weight, batch["row_target"])

    return forward


def sides_on_card() -> dict[str, Callable[[Setting, Task], LossOf]]:
    """All of a step's sides, the one that needs a second model last."""
    liger = {LIGER: liger_loss} if installed_version(DISTRIBUTION) else {}
    return {name: SIDES[name] for name in (OWN, FUSED)} | liger | SIDES


def measure_on_card(
    setting: Setting,
    task: Task,
    runs: int,
    sides: Mapping[str, Callable[[Setting, Task], LossOf]],
    say: Callable[[dict[str, Any]], None],
) -> OnCard:
    """Every side's peak, then all that fit in turn; and how near those of one meaning are.

    Args:
        setting: with the model on the card.
        task: one batch.
        runs: how often all take their turn, after two steps of each.
        sides: by name, those that matter most first.
        say: is told of each side when its second step is done, and of each difference.
    """
    losses: dict[str, LossOf] = {}
    peaks: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, make in sides.items():
        try:
            losses[name], second_ms, peaks[name] = _first_steps(setting, make, task)
            say({"side": name, "second_step_ms": second_ms, "peak_mib": peaks[name]})
        except torch.OutOfMemoryError:
            left_out[name] = "out of memory"
            _forget(setting)
            say({"side": name, "left_out": left_out[name]})
    found: dict[str, float] = {}
    for name, same in EQUALS:
        if {name, same} <= set(losses):
            pair = f"{name} / {same}"
            found[pair] = apart(setting, losses[name], losses[same]).gradient
            say({"gradients_apart": pair, "value": found[pair]})
    calls = {name: partial(_step, setting, loss) for name, loss in losses.items()}
    times_ms = take_turns([calls] * runs, warm_up=0) if calls else {}
    return OnCard(times_ms, peaks, left_out, found)


def _first_steps(
    setting: Setting, make: Callable[[Setting, Task], LossOf], task: Task
) -> tuple[LossOf, float, float]:
    """A side's loss; of its second step milliseconds and the allocator's peak in MiB."""
    loss = make(setting, task)
    _step(setting, loss)  # compiles, and makes the optimiser's state
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    second_ms = time_ms(partial(_step, setting, loss))
    peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return loss, second_ms, peak_bytes / 2**20


def _step(setting: Setting, loss: LossOf) -> None:
    """To the end of what the card does."""
    take_step(setting, loss)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget(setting: Setting) -> None:
    """The second model, and what was left of a step."""
    setting.__dict__.pop("frozen", None)
    setting.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
