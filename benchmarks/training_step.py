"""What a training step with PACT costs, beside plain fine-tuning and the released algorithm.

    python -m benchmarks.training_step [--model FOLDER] [--runs 5] [--json FILE]
    python -m benchmarks.training_step --device cuda [--runs 5] [--json FILE]

All sides train the same LoRA adapters on the same batch of random tokens, half of each sequence a
prompt: forward, backward and the optimiser's step. Each side is a line of JSON as soon as it has
made two steps; sides with one meaning are compared; then all run in turn. A figure is a ratio of
medians of one run. How memory is read, and what runs on a GPU: `benchmarks.training.steps`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measuring.clock import medians
from benchmarks.measuring.machine import circumstances
from benchmarks.measuring.process import in_own_process
from benchmarks.reporting.figures import Figure, align, figure_table, ratio
from benchmarks.training import data, sides
from benchmarks.training.data import DemoData
from benchmarks.training.steps import (
    LLAMA_8B,
    Size,
    Steps,
    measure_steps,
    process_memory,
    random_model,
)
from pact.demo.config import DemoConfig
from pact.demo.shipped import shipped_model
from pact.models.loading import load_model, load_tokenizer

SIZES = (Size(4, 128), Size(2, 512))
"""The batches on a processor."""
FILLING_EXAMPLES = 48
CARD = Size(4, 2048)
"""The batch on a GPU."""
Goal = tuple[str, str, str, dict[str, Any]]
"""What is compared, a side, the one that divides it, and the bound of their ratio."""
TIME, MEMORY, ADDED = "time", "memory", "memory beyond imports"
GOALS: dict[str, tuple[Goal, ...]] = {
    "cpu": (
        (TIME, sides.CACHED, sides.FUSED, {"at_most": 1.05}),
        (TIME, sides.CACHED_VOCABULARY, sides.FUSED, {"at_most": 1.05}),
        (TIME, sides.CACHED, sides.OWN, {"at_most": 1.0}),
        (TIME, sides.CACHED_VOCABULARY, sides.OWN, {"at_most": 1.0}),
        (TIME, sides.RELEASED, sides.CACHED, {"at_least": 1.9}),
        (TIME, sides.LIVE, sides.RELEASED, {"at_most": 0.85}),
        (TIME, sides.LIVE_NO_GATE, sides.RELEASED, {"at_most": 0.75}),
        (TIME, sides.READING, sides.CACHED, {"at_most": 0.01}),
        (MEMORY, sides.RELEASED, sides.CACHED, {"at_least": 1.5}),
        (ADDED, sides.RELEASED, sides.CACHED, {}),
    ),
    "cuda": (
        (TIME, sides.FUSED, sides.OWN, {"at_most": 1.0}),
        (TIME, sides.FUSED, sides.LIGER, {"at_most": 1.0}),
        (TIME, sides.CACHED, sides.FUSED, {"at_most": 1.05}),
        (TIME, sides.CACHED_VOCABULARY, sides.FUSED, {"at_most": 1.05}),
        (TIME, sides.RELEASED, sides.CACHED, {"at_least": 1.5}),
        (TIME, sides.LIVE, sides.RELEASED, {}),
        (MEMORY, sides.RELEASED, sides.CACHED, {"at_least": 1.5}),
        (MEMORY, sides.CACHED, sides.FUSED, {}),
    ),
}
"""By device."""


class Measured(NamedTuple):
    """All that was measured; on a GPU the steps alone."""

    steps: dict[str, Steps]
    """By size."""
    data_ms: Mapping[str, dict[str, list[float]]] = {}
    """On the demo's data, by what they are of."""
    cache_bytes_per_row: int | None = None


EXAMPLE, REFERENCE = "example of the demo's data", "reference of some of the demo's examples"


def measure(model: Path, runs: int) -> Measured:
    """Every measurement on a processor, with one model folder."""
    memory = {
        size: {side: in_own_process(process_memory, model, side, size) for side in sides.SIDES}
        for size in SIZES
    }
    setting, demo = sides.Setting(load_model(model)), DemoData(load_tokenizer(model))
    steps = {}
    for size in SIZES:
        task = sides.random_task(setting.student, *size)
        reference, batch = sides.cached_reference(setting, task, "selection", True), task.batch()
        reading = {sides.READING: lambda reference=reference, batch=batch: reference(batch)}
        found = measure_steps(setting, task, runs, sides.SIDES, _say, reading)
        steps[str(size)] = found._replace(
            peak_mib={side: most_mib for side, (most_mib, _) in memory[size].items()},
            added_mib={side: added_mib for side, (_, added_mib) in memory[size].items()},
        )
    data_ms = {
        EXAMPLE: data.example_times_ms(setting, demo, runs),
        REFERENCE: data.filling_times_ms(setting, demo, FILLING_EXAMPLES, runs),
    }
    cache = sides.cached_reference(setting, demo.task(0, 1), "selection", True).cache
    return Measured(steps, data_ms, cache.bytes_per_row)


def measure_on_card(runs: int) -> Measured:
    """The steps of a random model."""
    setting = sides.Setting(random_model(LLAMA_8B, "cuda"))
    task = sides.random_task(setting.student, *CARD)
    return Measured({str(CARD): measure_steps(setting, task, runs, sides.sides_on_card(), _say)})


def step_figures(size: str, steps: Steps, goals: Iterable[Goal]) -> list[Figure]:
    """Ratios of a step's sides; one that was left out has none."""
    values: dict[str, Mapping[str, float]] = {
        TIME: medians(steps.times_ms),
        MEMORY: steps.peak_mib,
        ADDED: steps.added_mib,
    }
    figures = []
    for kind, side, base, bound in goals:
        figures += ratio(f"{kind} {size}: {side} / {base}", values[kind], side, base, **bound)
    apart = steps.differences.items()
    return figures + [Figure(name=f"gradients apart {size}: {pair}", value=x) for pair, x in apart]


def data_figures(measured: Measured) -> list[Figure]:
    """On the demo's data: time per example, and the cache."""
    examples, filling = (medians(measured.data_ms[of]) for of in (EXAMPLE, REFERENCE))
    assert measured.cache_bytes_per_row is not None
    figures = []
    for side in (data.PACKED, data.PADDED):
        name = f"time per example: {data.PADDED_TO_512} / {side}"
        figures += ratio(name, examples, data.PADDED_TO_512, side, at_least=4.0)
    over, under = data.FILLING, data.BACKBONE
    return [
        *figures,
        *ratio(f"speed: {over} / {under}", filling, under, over, at_least=0.8),
        Figure(name="cache: bytes per row", value=measured.cache_bytes_per_row),
    ]


def table(measured: Measured) -> str:
    """Medians and ranges of every side, its peak where it was measured, and why one has none."""
    lines = [["", "median ms", "least", "most", "peak MiB"]]

    blocks = {f"step, {size} tokens": steps for size, steps in measured.steps.items()}
    blocks |= {title: Steps(times, {}, {}, {}) for title, times in measured.data_ms.items()}
    for title, steps in blocks.items():
        lines.append([title, "", "", "", ""])
        for name, values in steps.times_ms.items():
            spread = (statistics.median(values), min(values), max(values))
            peak = f"{steps.peak_mib[name]:.0f}" if name in steps.peak_mib else ""
            lines.append([f"  {name}", *(f"{value:.1f}" for value in spread), peak])
        lines += [[f"  {name}", reason, "", "", ""] for name, reason in steps.left_out.items()]
    return align(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", type=Path, help="default: the demo's, converted on first use")
    parser.add_argument("--runs", type=int, default=5, help="recorded rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time too")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"argument --runs: must be positive, got {args.runs}")
    on_card, runs = args.device == "cuda", args.runs
    if on_card and args.model:
        parser.error("--model is of --device cpu: a GPU runs a random model")
    if on_card and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA or AMD GPU, and torch sees none")
    folder = None if on_card else args.model or _shipped()
    made_with = circumstances(torch.device(args.device)) | {
        "model": folder.name if folder else "random, 8B",
        **{name: version(name) for name in ("transformers", "peft")},
        "runs": runs,
    }
    print(", ".join(f"{name} {value}" for name, value in made_with.items() if value), flush=True)
    measured = measure(folder, runs) if folder else measure_on_card(runs)
    figures: list[Figure] = []
    for size, steps in measured.steps.items():
        figures += step_figures(size, steps, GOALS[args.device])
    figures += data_figures(measured) if measured.data_ms else []
    print(table(measured), figure_table(figures), sep="\n\n")
    if args.json is not None:
        report = made_with | measured._asdict()
        report["steps"] = {size: each._asdict() for size, each in measured.steps.items()}
        report["figures"] = [each.record() for each in figures]
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _shipped() -> Path:
    cache_dir = Path(DemoConfig.cache_dir).expanduser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    return shipped_model(cache_dir)


if __name__ == "__main__":
    main()
