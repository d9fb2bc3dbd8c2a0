"""What the soak found, as a table in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- soak: begin -->\n", "<!-- soak: end -->\n"


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
