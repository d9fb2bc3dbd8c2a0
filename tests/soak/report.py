"""What the soak found: whether it is a failure, and its table in docs/reliability.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path("docs/reliability.md")
GROWTH_MIB = 16.0
"""Most that the steady run's memory may grow by over the second half of its time.

A run that leaks nothing moves by some MiB from tenth to tenth: the allocator gives back late what
is freed. One that keeps a tensor or a record's worth of objects (300 bytes) of every step gains
16 MiB in the 55,000 steps of half an hour, and would hold a gigabyte more after 36 hours.
"""
MANY = 100
"""Runs among which every kind of end has come up."""
BEGIN, END = "<!-- soak: begin -->\n", "<!-- soak: end -->\n"


def growth_mib(tenths: Sequence[float]) -> float:
    """By how much the memory grew over the second half of the time, along its regression line.

    Args:
        tenths: MiB, over equal parts of the time.
    """
    half = tenths[len(tenths) // 2 :]
    if len(half) < 2:
        return 0.0
    return statistics.linear_regression(range(len(half)), half).slope * (len(half) - 1)


def failures(found: Mapping[str, Any]) -> list[str]:
    """What makes the soak fail, a line each: faults of runs, memory that grows, ends that never
    came."""
    said = list(found["faults"])
    growth = growth_mib(found["steady"]["memory_mib"])
    if growth > GROWTH_MIB:
        said.append(
            f"the run that was let be must keep its memory, and grew by {growth:.0f} MiB in the "
            f"second half of its time, more than {GROWTH_MIB:.0f}"
        )
    if found["runs"] >= MANY:
        kinds = ("killed", "interrupted", "terminated")
        said += [f"no run was {kind} in {found['runs']}" for kind in kinds if not found[kind]]
    return said


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    steady = found["steady"]
    memory = steady["memory_mib"]
    rows = {
        "length": f"{found['minutes']} minutes on two cores ({found['machine']})",
        "runs brought to their end": f"{found['runs']}, of them "
        f"{found['runs_in_two_processes']} in two processes",
        "ended on the way by SIGKILL": found["killed"],
        "ended on the way by SIGINT, SIGTERM": f"{found['interrupted']}, {found['terminated']}",
        "lost, with other bits, or with a file left behind": len(found["faults"]),
        "the run that was let be": f"{steady['steps']} steps, {steady['checkpoints']} checkpoints",
        "its memory by tenths of the time": " ".join(f"{value:.0f}" for value in memory) + " MiB",
        "its growth in the second half": f"{growth_mib(memory):.0f} MiB, of at most "
        f"{GROWTH_MIB:.0f}",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| what | found |", "| --- | --- |", *lines]) + "\n"


def write_report(found: Mapping[str, Any]) -> str:
    """Put the table into the page; returns it."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table(found)
    PAGE.write_text(before + BEGIN + made + END + after, encoding="utf-8")
    return made
