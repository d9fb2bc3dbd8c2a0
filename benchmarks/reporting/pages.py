"""The measured sections of README.md and the pages of docs/, from the recorded files.

A section stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, and every figure in it is
read from benchmarks/results: ops.csv and ops.md, the records of the experiment, and what an H200
said. `python -m benchmarks report` and `python -m benchmarks.experiment render` write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/how-it-fails.md")
SECTION = re.compile(r"<!-- ([a-z-]+): begin -->\n.*?<!-- \1: end -->\n", re.DOTALL)
OURS, RELEASED, EAGER = "pact-kernels", "released", "eager"
NO_PEERS = ("GEMMs alone", "cross-entropy alone", OURS)
SMALL = {"hidden": 576, "vocabulary": 49152}
WIDE = {"hidden": 640, "vocabulary": 262144}
CROSS_ENTROPIES: dict[str, dict[str, Any]] = {
    "512, 576 x 49152": {**SMALL, "length": 512},
    "256, trainable head": {**SMALL, "length": 256, "trainable_head": True},
    "128 of 256, the rest prompt": {**SMALL, "length": 256, "prompt_share": 0.5},
    "128, peaked logits": {**SMALL, "length": 128, "peaked": True},
    "128, bf16": {**SMALL, "length": 128, "dtype": "bfloat16"},
    "64, 640 x 262144": {**WIDE, "length": 64},
}
PLAIN_CASE = {"dtype": "float32", "trainable_head": False, "prompt_share": 0.0, "peaked": False}
AGAINST_RELEASED: dict[str, dict[str, Any]] = {
    f"{size['sequences']} x {size['length']}, {name} prompt, {head['hidden']} x "
    f"{head['vocabulary']}": {**size, **head, "prompt_share": share}
    for size, head in (
        ({"sequences": 4, "length": 512}, SMALL),
        ({"sequences": 1, "length": 128}, WIDE),
        ({"sequences": 4, "length": 512}, WIDE),
    )
    for name, share in (("half", 0.5), ("90 %", 0.9))
}
STEPS = (
    "plain, transformers",
    "liger",
    "plain, fused",
    "PACT cached, selection",
    "PACT cached, vocabulary, no gate",
    "PACT live, selection",
    "released algorithm",
)
EVIDENCE = ("aligned", "plain", "plain, 10 % refusals")
"""Labels of the experiment's main table; beside them the released one and two of ours."""


def write_pages(root: Path = ROOT) -> list[Path]:
    """Every page that there is, with its sections as the recorded files have them now."""
    paths = [path for name in PAGES if (path := root / name).is_file()]
    for path in paths:
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    return paths


def rendered(page: str) -> str:
    """A page's text with each marked section made anew.

    Raises:
        ValueError: a marker names no section.
    """

    def made(match: re.Match[str]) -> str:
        name = match[1]
        if name not in SECTIONS:
            raise ValueError(f"a section must be of {', '.join(SECTIONS)}, got {name}")
        return f"<!-- {name}: begin -->\n{SECTIONS[name]()}\n<!-- {name}: end -->\n"

    return SECTION.sub(made, page)


def evidence() -> str:
    """What each method keeps, a line a method: refusals, over-refusal, tasks."""
    asked = {
        "harmful refused, benign data": ("benign only", "harmful"),
        "harmful refused, 10 % harmful data": ("10 % harmful", "harmful"),
        "benign refused, benign data": ("benign only", "benign_anywhere"),
        "tasks right, benign data": ("benign only", "all_tasks"),
    }
    return _experiment(asked)


def failures() -> str:
    """The same methods where they do worst."""
    asked = {
        "benign refused, benign data": ("benign only", "benign_anywhere"),
        "benign refused, 10 % harmful data": ("10 % harmful", "benign_anywhere"),
        "outside list refused, benign data": ("benign only", "outside"),
        "refused after the prefill, benign data": ("benign only", "prefill_anywhere"),
    }
    return _experiment(asked)


def _experiment(asked: Mapping[str, tuple[str, str]]) -> str:
    """A table of the experiment's main methods.

    Args:
        asked: by the head of a column, the fine-tuning set and the measure.
    """
    from benchmarks.experiment import methods
    from benchmarks.experiment.frame import lines_of, read_records
    from benchmarks.experiment.grid import SEEDS, full_grid

    grid = full_grid()
    records = read_records(grid, RESULTS / "experiment", "")
    lines = {
        (line.group, line.label): line for line in lines_of(records, grid.recommended, {})["main"]
    }
    released = next(x for x, cell in methods.METHODS.items() if cell == methods.RELEASED)
    rows = []
    ours = grid.recommended, methods.ANCHORED_LABEL
    for label in dict.fromkeys([*EVIDENCE, released, *ours]):
        if missing := [group for group, _ in asked.values() if (group, label) not in lines]:
            raise ValueError(f"{label} must have records of {missing[0]}, got none: name another")
        name = lines["benign only", label]["name"]
        rows.append((name, *(lines[group, label].show(key) for group, key in asked.values())))
    return table((f"held-out prompts, {len(SEEDS)} seeds, [95 % interval]", *asked), rows)


def speed() -> str:
    """Four lines that stand for all: a card and a processor, a step and a loss."""
    card, loss = _h200("frozen")
    steps, cpu = _steps(), _measured()
    machine = f"{cpu.iloc[-1].machine}, fp32"
    half = _case(cpu, "pact_loss", AGAINST_RELEASED["4 x 512, half prompt, 576 x 49152"])
    alone = _case(cpu, "linear_cross_entropy", CROSS_ENTROPIES["512, 576 x 49152"])
    ours, plain, theirs = (
        f"{steps[side]['ms']:.0f} ms, {steps[side]['peak_gib']:.0f} GiB"
        for side in ("PACT cached, vocabulary, no gate", STEPS[0], STEPS[-1])
    )
    peer = _fastest(alone)
    rows = [
        ("step, 8B, LoRA, 4 x 2048 tokens, cached reference", f"{card}, bf16", ours)
        + (f"transformers, without PACT: {plain}", theirs),
        ("loss and gradient, 16384 rows, 4096 x 128256, cached", f"{card}, bf16")
        + (f"{loss['pact_loss K50 vocabulary']:.1f} ms",)
        + (f"liger-kernel, cross-entropy alone: {loss['liger 4']:.1f} ms", "-"),
        ("loss and gradient, 4 x 512 tokens, half prompt, 576 x 49152", machine)
        + (_both(half.loc[OURS]), "-", _both(half.loc[RELEASED])),
        ("cross-entropy and gradient, 512 rows, 576 x 49152", machine)
        + (_both(alone.loc[OURS]), f"{peer.name}: {_both(peer)}", "-"),
    ]
    heads = ("", "on", OURS, "other software", "released algorithm")
    return table(heads, rows, left=2)


def cross_entropy() -> str:
    """`linear_cross_entropy` beside its fastest peer and eager torch, on the processor."""
    rows, cpu = [], _measured()
    for label, wanted in CROSS_ENTROPIES.items():
        case = _case(cpu, "linear_cross_entropy", wanted)
        ours, peer, eager = case.loc[OURS], _fastest(case), case.loc[EAGER]
        extra = ", ".join(_mib(each.extra_mib) for each in (ours, peer, eager))
        rows.append(
            (label, f"{_ms(ours.p50_ms)} ms", f"{peer.name} {_ms(peer.p50_ms)}")
            + (_ms(eager.p50_ms), f"{ours.of_gemms:.2f}", extra)
        )
    heads = ("rows, D x V", OURS, "fastest peer", "eager", "of GEMMs")
    return table((*heads, "extra MiB: ours, fastest peer, eager"), rows)


def released() -> str:
    """`pact_loss` from states beside the released algorithm, on the processor."""
    rows, cpu = [], _measured()
    for label, wanted in AGAINST_RELEASED.items():
        case = _case(cpu, "pact_loss", wanted)
        ours, theirs = case.loc[OURS], case.loc[RELEASED]
        rows.append(
            (label, f"{ours.p50_ms:.0f} ms", f"{theirs.p50_ms:.0f} ms")
            + (f"{theirs.p50_ms / ours.p50_ms:.1f}",)
            + (f"{_mib(ours.extra_mib)}, {_mib(theirs.extra_mib)}",)
        )
    heads = ("selection, from states, K 50", OURS, "released algorithm", "times faster")
    return table((*heads, "extra MiB: ours, released"), rows)


def circumstances() -> str:
    """Machine, versions, dates and commits of the processor's figures."""
    cpu = _measured()
    dates = sorted(cpu.date.str[:10].unique())
    told = [cpu.iloc[-1].machine, f"torch {', '.join(sorted(cpu.torch.unique()))}"]
    told += [f"commits {', '.join(sorted(cpu.commit.unique()))}"]
    told += [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"]
    return f"On {', '.join(told)}, forward and backward, fp32 where nothing else is said."


def missed() -> str:
    """The figures short of their targets, as the report has them."""
    lines = (RESULTS / "ops.md").read_text(encoding="utf-8").splitlines()
    found = [line.strip("| ").split(" | ")[:3] for line in lines if line.endswith("| missed |")]
    return table(("figure", "target", "measured"), found) if found else "None."


def step_8b() -> str:
    """Whole training steps of a randomly initialised model of 8B parameters on one H200."""
    steps = _steps()
    rows = [
        (side.replace("liger", "plain, liger-kernel"), f"{steps[side]['ms']:.0f}")
        + (f"{steps[side]['peak_gib']:.1f}",)
        for side in STEPS
    ]
    return table((f"4 x 2048 tokens, {_h200('frozen')[0]}", "ms", "peak GiB"), rows)


def measured() -> str:
    """README's two tables."""
    return f"{evidence()}\n\n{speed()}"


SECTIONS = {
    "measured": measured,
    "failures": failures,
    "circumstances": circumstances,
    "cross-entropy": cross_entropy,
    "released": released,
    "missed": missed,
    "step": step_8b,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown, whose first columns stand to the left."""
    rule = ["---" if place < left else "---:" for place in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


@cache
def _measured() -> pd.DataFrame:
    """What the last measured processor said."""
    results = pd.read_csv(RESULTS / "ops.csv")
    results = results[(results.device == "cpu") & results.p50_ms.notna()]
    return results[results.machine == results.iloc[-1].machine]


def _case(results: pd.DataFrame, op: str, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """The lines of one case, by implementation."""
    of_loss = {"over": "selection", "cached": False, "tokens": 50}
    asked = {**PLAIN_CASE, **(of_loss if op == "pact_loss" else {}), "op": op, **wanted}
    for name, value in asked.items():
        results = results[results[name] == value]
    if not results.implementation.is_unique or OURS not in set(results.implementation):
        raise ValueError(f"ops.csv must have one measured case of {asked}, got {len(results)}")
    return results.set_index("implementation")


def _fastest(case: pd.DataFrame) -> pd.Series:
    peers = case[~case.index.isin(NO_PEERS)]
    return peers.loc[peers.p50_ms.idxmin()]


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _mib(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _both(line: pd.Series) -> str:
    return f"{_ms(line.p50_ms)} ms, {line.extra_mib:.0f} MiB"


def _lines(name: str) -> list[dict[str, Any]]:
    text = (RESULTS / "h200" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _h200(name: str) -> tuple[str, Mapping[str, float]]:
    """The card, and the last times of a measurement in ms."""
    lines = _lines("second_day.jsonl")
    return lines[0]["card"], [line["ms"] for line in lines if line.get("name") == name][-1]


def _steps() -> dict[str, dict[str, Any]]:
    lines = _lines("training_step_8b.jsonl")
    return {line["side"]: line for line in lines if line.get("shape") == "4 x 2048"}
