"""What a measurement is planned as: a case, who takes part, and whom they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.cases.case import Case

OURS, EAGER, RELEASED = "pact-kernels", "eager", "released"
"""Names of the peers that figures are about."""
BASE = "base"


class Head(NamedTuple):
    """Size of a model's head."""

    hidden: int
    vocabulary: int


HEADS = {
    "SmolLM2-135M": Head(576, 49152),
    "Llama-3.2-1B": Head(2048, 128256),
    "Llama-3.1-8B": Head(4096, 128256),
    "Qwen2.5-7B": Head(3584, 152064),
    "Gemma-2-2B": Head(2304, 256000),
    "Gemma-3-270m": Head(640, 262144),
}
SMALL, LLAMA, GEMMA = "SmolLM2-135M", "Llama-3.1-8B", "Gemma-3-270m"
CAPPED_HEAD, SOFTCAP = "Gemma-2-2B", 30.0
"""A model whose logits are capped, and its cap."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A case, and how it is measured."""

    case: Case
    varied: str
    """What it differs in from the set's base case."""
    baseline: str = EAGER
    """The implementation that the others are divided by."""
    only: tuple[str, ...] = ()
    """The peers that take part; all of them where empty."""


def planned(
    case: Case, varied: str, only: tuple[str, ...] = (), baseline: str = EAGER, **changes: Any
) -> Plan:
    """The plan of a case with some of its fields changed."""
    return Plan(case=replace(case, **changes), varied=varied, baseline=baseline, only=only)


class Line(NamedTuple):
    """Cases that differ in one size alone, along which time and memory are looked at."""

    size: str
    """N or V."""
    cases: tuple[Case, ...]
    """From the smallest to the largest."""

    def sizes(self) -> list[int]:
        return [case.rows if self.size == "N" else case.vocabulary for case in self.cases]


def make_case(op: str, head: str, sequences: int, length: int, **options: Any) -> Case:
    """A case with the head of a model."""
    sizes = {"sequences": sequences, "length": length, **HEADS[head]._asdict()}
    return Case(op=op, **sizes, **options)


def title(case: Case) -> str:
    """One line for tables; what is as in most cases is left out."""
    share = f", {100 * case.prompt_share:g} % prompt" if case.prompt_share else ""
    parts = [
        f"{case.sequences} x {case.length}{share}",
        f"{case.hidden} x {case.vocabulary}",
        {"float32": "fp32", "bfloat16": "bf16"}.get(case.dtype, case.dtype),
    ]
    with_kl = case.op in ("pact_loss", "pact_kl")
    told = {
        case.over: with_kl,
        "cached" if case.cached else "from states": with_kl,
        "no gate": with_kl and not case.gated,
        f"K {case.tokens}": with_kl or case.op == "selected_confidences",
        "trainable head": case.trainable_head,
        "peaked": case.peaked,
        f"soft cap {case.softcap or 0:g}": case.softcap is not None,
    }
    return ", ".join([*parts, *(text for text, holds in told.items() if holds)])
