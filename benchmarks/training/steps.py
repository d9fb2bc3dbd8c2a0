"""Steps of every side on one batch: times in turn, peaks, and how near sides of one meaning are.

On a GPU the model has 8B parameters in bfloat16, randomly initialised: weights that mean nothing
cost what others do, and nothing is read but code. Memory is the allocator's peak over a side's
second step there, the model and all else that the side needs included; elsewhere it is that of a
process a side, loading included. A side that does not fit is left out, and said to be.

Legend: B sequences, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measuring.clock import take_turns, time_ms
from benchmarks.measuring.process import MIB, peak_mib
from benchmarks.training import sides
from benchmarks.training.sides import LossOf, Setting, Side, Task
from pact.models.loading import load_model

EQUALS = {
    (sides.RELEASED, sides.LIVE): 1e-4,
    (sides.CACHED, sides.LIVE): 5e-3,
    (sides.OWN, sides.FUSED): 1e-4,
}
"""Sides with one meaning, and how far apart their gradients may be in fp32. The second one is of a
cache in 16 bits. Losses may differ by MOST_APART."""
MOST_APART = 1e-4
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


class Size(NamedTuple):
    """Size of a batch."""

    sequences: int
    length: int

    def __str__(self) -> str:
        return f"{self.sequences} x {self.length}"


class Steps(NamedTuple):
    """What was measured of one batch, by side."""

    times_ms: dict[str, list[float]]
    peak_mib: dict[str, float]
    left_out: dict[str, str]
    """Why."""
    differences: dict[str, float]
    """Relative differences between the gradients of sides with one meaning."""
    added_mib: Mapping[str, float] = {}
    """The peak beyond that of a process's imports; none on a GPU."""


def random_model(config: LlamaConfig, device: torch.device | str) -> Any:
    """In bfloat16, made where it is used."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def measure_steps(
    setting: Setting,
    task: Task,
    runs: int,
    chosen: Mapping[str, Side],
    say: Callable[[dict[str, Any]], None],
    beside: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> Steps:
    """Two steps of every side, then `runs` turns of all that fit, and of what is to stand beside,
    which is called once before.

    `say` is told of each side when its second step is done, and of each difference.

    Raises:
        AssertionError: in fp32 sides of one meaning have another loss or gradient.
    """
    found, losses = Steps({}, {}, {}, {}), dict[str, LossOf]()
    for name, make in chosen.items():
        try:
            losses[name], told = _first_steps(setting, make, task)
            if "peak_mib" in told:
                found.peak_mib[name] = told["peak_mib"]
            say({"side": name, **told})
        except torch.OutOfMemoryError:
            found.left_out[name] = "out of memory"
            _forget(setting)
            say({"side": name, "left_out": found.left_out[name]})
    # The adapters are not the identity any more.
    for (name, same), most in EQUALS.items():
        if {name, same} <= set(losses):
            pair, off = f"{name} / {same}", sides.apart(setting, losses[name], losses[same])
            if not (setting.in_16_bits or (off.loss <= MOST_APART and off.gradient <= most)):
                raise AssertionError(f"{pair} must be alike, got {off}")
            found.differences[pair] = off.gradient
            say({"gradients_apart": pair, "value": off.gradient})
    for call in beside.values():
        call()  # a first one is slower, and no side's first step is timed either
    turns = {name: partial(_step, setting, loss) for name, loss in losses.items()} | {**beside}
    return found._replace(times_ms=take_turns([turns] * runs, warm_up=0)) if turns else found


def process_memory(model: Path, side: str, size: Size) -> tuple[float, float]:
    """MiB that this process has held at most when one side has loaded the model and taken two
    steps, and how many of them are beyond the interpreter and its libraries.
    """
    imports_mib, setting = peak_mib(), Setting(load_model(model))
    loss = sides.SIDES[side](setting, sides.random_task(setting.student, *size))
    for _ in range(2):
        sides.take_step(setting, loss)
    most_mib = peak_mib()
    return most_mib, most_mib - imports_mib


def _first_steps(setting: Setting, make: Side, task: Task) -> tuple[LossOf, dict[str, float]]:
    """A side's loss; of its second step milliseconds and, on a GPU, the allocator's peak."""
    loss = make(setting, task)
    _step(setting, loss)  # compiles, and makes the optimiser's state
    if _on_card(setting):
        torch.cuda.reset_peak_memory_stats()
    found = {"second_step_ms": time_ms(partial(_step, setting, loss))}
    if _on_card(setting):
        found["peak_mib"] = torch.cuda.max_memory_allocated() / MIB
    return loss, found


def _step(setting: Setting, loss: LossOf) -> None:
    """To the end of what the card does."""
    sides.take_step(setting, loss)
    if _on_card(setting):
        torch.cuda.synchronize()


def _forget(setting: Setting) -> None:
    """The second model, and what was left of a step."""
    setting.__dict__.pop("frozen", None)
    setting.optimizer.zero_grad()
    if _on_card(setting):
        torch.cuda.empty_cache()


def _on_card(setting: Setting) -> bool:
    """Whether the model is there; a machine with a GPU may measure its processor."""
    return setting.token_ids.is_cuda
