"""What a training step with PACT costs, beside plain fine-tuning and the released algorithm.

    python -m benchmarks.training_step [--model FOLDER] [--runs 5] [--json FILE] [--quick]
    python -m benchmarks.training_step --device cuda [--runs 5] [--json FILE]

All sides train the same LoRA adapters in fp32 on the same batch of random tokens, half of each
sequence a prompt: forward, backward and the optimiser's step. Sides with one meaning are checked to
have one loss and gradient; then all run in turn, the first round unrecorded. A figure is a ratio of
medians of one run. Memory is the peak of a process per side, loading included.

On a GPU it is a randomly initialised model of 8B parameters in bfloat16, and the allocator's peak;
see `benchmarks.training.card`. Each side is a line of JSON as soon as it has made two steps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measuring.clock import medians
from benchmarks.reporting.figures import Figure, align, figure_table
from benchmarks.training.card import (
    LIGER,
    LLAMA_8B,
    OnCard,
    measure_on_card,
    random_model,
    sides_on_card,
)
from benchmarks.training.data import (
    BACKBONE,
    FILLING,
    PACKED,
    PADDED,
    PADDED_TO_512,
    DemoData,
    example_times_ms,
    filling_times_ms,
)
from benchmarks.training.memory import Memory, memory_of
from benchmarks.training.sides import (
    CACHED,
    CACHED_VOCABULARY,
    FUSED,
    LIVE,
    LIVE_NO_GATE,
    OWN,
    READING,
    RELEASED,
    SIDES,
    cached_reference,
    make_setting,
    random_task,
    step_times_ms,
)
from pact.demo.config import DemoConfig
from pact.demo.shipped import shipped_model
from pact.loading import load_model, load_tokenizer


class Size(NamedTuple):
    """Size of a batch."""

    sequences: int
    length: int

    def __str__(self) -> str:
        return f"{self.sequences} x {self.length}"


class Plan(NamedTuple):
    """How much is measured."""

    sizes: tuple[Size, ...]
    memory_sides: tuple[str, ...]
    filling_examples: int


FULL = Plan((Size(4, 128), Size(2, 512)), tuple(SIDES), 48)
QUICK = Plan((Size(2, 16),), (CACHED, RELEASED), 4)
CARD = Size(4, 2048)
"""The batch on a GPU."""


class Measurements(NamedTuple):
    """All times and peaks, by what they are of, then by side."""

    steps_ms: dict[str, dict[str, list[float]]]
    memory: dict[str, dict[str, Memory]]
    examples_ms: dict[str, list[float]]
    filling_ms: dict[str, list[float]]
    cache_bytes_per_row: int


def measure(model: Path, plan: Plan, runs: int) -> Measurements:
    """Take every measurement with one model folder."""
    memory = {
        str(size): memory_of(model, plan.memory_sides, size.sequences, size.length)
        for size in plan.sizes
    }
    setting, data = make_setting(load_model(model)), DemoData(load_tokenizer(model))
    steps = {
        str(size): step_times_ms(setting, random_task(setting.student, *size), runs)
        for size in plan.sizes
    }
    return Measurements(
        steps,
        memory,
        example_times_ms(setting, data, runs),
        filling_times_ms(setting, data, plan.filling_examples, runs),
        cached_reference(setting, data.task(0, 1), "selection", True).cache.bytes_per_row,
    )


def step_figures(size: str, times_ms: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Ratios of a step's sides."""
    of = medians(times_ms)

    def ratio(side: str, base: str, **target: float) -> Figure:
        return Figure(name=f"time {size}: {side} / {base}", value=of[side] / of[base], **target)

    cached = (CACHED, CACHED_VOCABULARY)
    return [
        *(ratio(side, FUSED, at_most=1.05) for side in cached),
        *(ratio(side, OWN, at_most=1.0) for side in cached),
        ratio(RELEASED, CACHED, at_least=1.9),
        ratio(LIVE, RELEASED, at_most=0.85),
        ratio(LIVE_NO_GATE, RELEASED, at_most=0.75),
        ratio(READING, CACHED, at_most=0.01),
    ]


def memory_figures(size: str, memory: Mapping[str, Memory]) -> list[Figure]:
    """The released algorithm's peak by ours: of the processes, and of what they add to imports."""
    released, cached = memory[RELEASED], memory[CACHED]
    added = [each.peak_mib - each.imports_mib for each in (released, cached)]
    name = f"memory {size}: {RELEASED} / {CACHED}"
    return [
        Figure(name=name, value=released.peak_mib / cached.peak_mib, at_least=1.5),
        Figure(name=f"{name}, imports apart", value=added[0] / added[1]),
    ]


def data_figures(measured: Measurements) -> list[Figure]:
    """On the demo's data: time per example, and the cache."""
    examples, filling = medians(measured.examples_ms), medians(measured.filling_ms)
    released = examples[PADDED_TO_512]
    return [
        *(
            Figure(
                name=f"time per example: {PADDED_TO_512} / {side}",
                value=released / examples[side],
                at_least=4.0,
            )
            for side in (PACKED, PADDED)
        ),
        Figure(
            name=f"speed: {FILLING} / {BACKBONE}",
            value=filling[BACKBONE] / filling[FILLING],
            at_least=0.8,
        ),
        Figure(name="cache: bytes per row", value=measured.cache_bytes_per_row),
    ]


def all_figures(measured: Measurements) -> list[Figure]:
    """Every figure with a target, and a few without."""
    return [
        *(
            figure
            for size, times in measured.steps_ms.items()
            for figure in step_figures(size, times)
        ),
        *(
            figure
            for size, memory in measured.memory.items()
            for figure in memory_figures(size, memory)
        ),
        *data_figures(measured),
    ]


def times_table(measured: Measurements) -> str:
    """Medians and ranges of every side in milliseconds, and its peak where it was measured."""
    lines: list[list[str]] = [["", "median ms", "least", "most", "peak MiB"]]

    def block(
        title: str, times: Mapping[str, Sequence[float]], memory: Mapping[str, Memory]
    ) -> None:
        lines.append([title, "", "", "", ""])
        for name, values in times.items():
            spread = (statistics.median(values), min(values), max(values))
            peak = f"{memory[name].peak_mib:.0f}" if name in memory else ""
            lines.append([f"  {name}", *(f"{value:.1f}" for value in spread), peak])

    for size, times in measured.steps_ms.items():
        block(f"step, {size} tokens", times, measured.memory[size])
    block("example of the demo's data", measured.examples_ms, {})
    block("reference of some of the demo's examples", measured.filling_ms, {})
    return align(lines)


def card_figures(found: OnCard) -> list[Figure]:
    """Ratios of what was measured on a GPU; a side that was left out has none."""
    of, peaks = medians(found.steps_ms), found.peak_mib

    def ratios(values: Mapping[str, float], kind: str, pairs: Sequence[Any]) -> list[Figure]:
        return [
            Figure(
                name=f"{kind} {CARD}: {side} / {base}", value=values[side] / values[base], **goal
            )
            for side, base, goal in pairs
            if side in values and base in values
        ]

    return [
        *ratios(
            of,
            "time",
            [
                (FUSED, OWN, {"at_most": 1.0}),
                (FUSED, LIGER, {"at_most": 1.0}),
                (CACHED, FUSED, {"at_most": 1.05}),
                (CACHED_VOCABULARY, FUSED, {"at_most": 1.05}),
                (RELEASED, CACHED, {"at_least": 1.5}),
                (LIVE, RELEASED, {}),
            ],
        ),
        *ratios(peaks, "memory", [(RELEASED, CACHED, {"at_least": 1.5}), (CACHED, FUSED, {})]),
        *(
            Figure(name=f"gradients apart: {pair}", value=value)
            for pair, value in found.differences.items()
        ),
    ]


def card_table(found: OnCard) -> str:
    """Medians, ranges and peaks by side, and why one has none."""
    lines: list[list[str]] = [[f"step, {CARD}", "median ms", "least", "most", "peak MiB"]]
    for name, values in found.steps_ms.items():
        spread = (statistics.median(values), min(values), max(values), found.peak_mib[name])
        lines.append([name, *(f"{value:.1f}" for value in spread)])
    lines += [[name, reason, "", "", ""] for name, reason in found.left_out.items()]
    return align(lines)


def circumstances(model: str) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    card = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return card | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": model,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    plan, runs = (QUICK, 1) if args.quick else (FULL, args.runs)
    measured: Measurements | OnCard
    if args.device == "cuda":
        if args.model or args.quick:
            parser.error("--model and --quick are of --device cpu: a GPU runs a random model")
        if not torch.cuda.is_available():
            parser.error("--device cuda needs an NVIDIA or AMD GPU, and torch sees none")
        made_with = _told("random, 8B", runs)
        measured = _on_card(runs)
        figures, table = card_figures(measured), card_table(measured)
    else:
        folder = args.model or _shipped()
        made_with = _told(folder.name, runs)
        measured = measure(folder, plan, runs)
        figures, table = all_figures(measured), times_table(measured)
    print(table, figure_table(figures), sep="\n\n")
    if args.json is not None:
        report = made_with | measured._asdict() | {"figures": [each.record() for each in figures]}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _told(model: str, runs: int) -> dict[str, Any]:
    """The circumstances, printed."""
    made_with = circumstances(model)
    listed = ", ".join(f"{name} {value}" for name, value in made_with.items())
    print(f"{listed}, runs {runs}", flush=True)
    return made_with


def _on_card(runs: int) -> OnCard:
    """A line of JSON for each side as it is done."""
    setting = make_setting(random_model(LLAMA_8B, "cuda"))
    task = random_task(setting.student, *CARD)

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    return measure_on_card(setting, task, runs, sides_on_card(), say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", type=Path, help="default: the demo's, converted on first use")
    parser.add_argument("--runs", type=_positive, default=5, help="recorded rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time too")
    parser.add_argument("--quick", action="store_true", help="one round, a small batch")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def _shipped() -> Path:
    cache_dir = Path(DemoConfig.cache_dir).expanduser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    return shipped_model(cache_dir)


if __name__ == "__main__":
    main()
