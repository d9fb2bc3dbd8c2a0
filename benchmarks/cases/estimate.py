"""How long a case will take, from its flops and bytes: for budgets, never for a result.

Legend: V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.cases.case import Case
from benchmarks.cases.plan import OURS
from benchmarks.cases.products import flops, minimal_products
from benchmarks.harness import ROUNDS
from benchmarks.measuring.entries import OF_ALL_POSITIONS, Entry
from benchmarks.measuring.equality import checked_rows
from benchmarks.measuring.memory import CALLS


class Speed(NamedTuple):
    """How fast a machine is, rather too low than too high."""

    flop_per_s: dict[str, float]
    """Speed of a GEMM, by dtype."""
    bytes_per_s: float
    """Speed of passes over a tensor."""
    randoms_per_s: float
    """Normal numbers, for the inputs."""
    start_s: float
    """Seconds before an entry runs: imports, and the process that measures its memory."""
    compile_s: float
    """Seconds more for one that is compiled for each shape."""


SPEEDS = {
    "cpu": Speed({"float32": 150e9, "bfloat16": 150e9}, 12e9, 70e6, 0.5, 1.5),
    "cuda": Speed({"float32": 40e12, "bfloat16": 550e12}, 2e12, 5e9, 0.2, 12.0),
}
"""Two cores of the slower processors with AVX-512 that were met; and an H100, of which no call has
been timed yet."""
COMPILED = {"cpu": ("torch.compile", "cut-cross-entropy"), "cuda": ("torch.compile",)}
EVERY_COLUMN = ("released", "peer CE + released KL")
"""Those that form all columns of all three models' logits."""
PASSES = 12
"""Over all logits in fp32, of an implementation that forms them."""
OWN_PASSES = 4
FLOAT64 = 2.0
"""How much slower the oracle's products are."""
CHECKS = 4
"""Formulas on few rows for each case: twice the oracle, twice eager."""


def case_s(case: Case, entries: Sequence[Entry], device: torch.device) -> float:
    """Seconds that a case takes with those who take part; 0 without any."""
    if not entries:
        return 0.0
    speed = SPEEDS[device.type]
    on_gpu = device.type == "cuda"
    calls_s = [_call_s(case, each, speed) for each in entries]
    settings = [len(each.peer.settings(case, device)) for each in entries]
    rounds = ROUNDS[device.type].of(1e3 * sum(calls_s))
    few = replace(case, sequences=1, length=min(case.rows, checked_rows(case)), prompt_share=0.0)
    check_s = flops(few) / speed.flop_per_s[case.dtype]
    inputs_s = _inputs_s(case, speed)
    total_s = 2 * inputs_s + CHECKS * FLOAT64 * check_s
    for each, call_s, count in zip(entries, calls_s, settings, strict=True):
        trials = count + (2 if count > 1 or on_gpu else 0)
        total_s += call_s * (rounds + trials)
        if not each.is_floor:
            start_s = speed.start_s + speed.compile_s * (each.name in COMPILED[device.type])
            total_s += CALLS * call_s + count * (check_s + start_s)
            total_s += 0.0 if on_gpu else inputs_s  # of the process that measures memory
    return total_s


def _call_s(case: Case, entry: Entry, speed: Speed) -> float:
    """Products, and passes over logits: none of floors, a few of ours, more of others."""
    passes = PASSES
    if entry.is_floor or entry.name == OURS:
        passes = 0 if entry.is_floor else OWN_PASSES
    if entry.name in EVERY_COLUMN:
        positions = entry.name in OF_ALL_POSITIONS
        share = 0.0 if positions else case.prompt_share
        case = replace(case, over="vocabulary", prompt_share=share)
    logits_bytes = 4 * case.rows * max(each.columns for each in minimal_products(case))
    return flops(case) / speed.flop_per_s[case.dtype] + passes * logits_bytes / speed.bytes_per_s


def _inputs_s(case: Case, speed: Speed) -> float:
    heads = 2 if case.trainable_head else 1
    numbers = heads * case.vocabulary * case.hidden + 4 * case.positions * case.hidden
    return numbers / speed.randoms_per_s
