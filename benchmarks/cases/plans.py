"""Which cases are measured, on which device, by whom, and against what.

Each set varies one thing at a time around a base case, and a plan says which thing. Plans stand in
the order of their importance, so that a run that is cut off has measured what matters most.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.cases.case import OPS, Case

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
QUICK_SOFTCAP = 3.0
"""Less than two standard deviations of the logits: it bends most of them."""
ALONE, FEW, TWO = (OURS,), (OURS, EAGER), (OURS, RELEASED)
NAMED = ("torch linear_cross_entropy", "cut-cross-entropy", "Liger", "quack")
MOST = (OURS, EAGER, "torch.compile", *NAMED)
"""All but TRL, whose tiles take twice the time of the others on a CPU: the first case shows it."""
FUSED = (OURS, *NAMED, "TRL")
COMPILED = (OURS, EAGER, "torch.compile")
"""On a GPU it takes many seconds for every shape: three cases, last of all."""
LONG = (OURS, "Liger", "cut-cross-entropy")
OTHER_HEADS = tuple(head for head in HEADS if head != LLAMA)
CPU_LINE = Case(op="linear_cross_entropy", sequences=1, length=1024, hidden=128, vocabulary=8000)
"""1024 rows are one chunk on a CPU: from there on a change of memory is no change of a chunk's."""


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


def lines(device: str) -> list[Line]:
    """The lines of a device's set; a GPU's goes from 256 rows to a long context."""
    if device == "cuda":
        base = gpu_case("linear_cross_entropy")
        few = [replace(base, sequences=1, length=rows) for rows in (256, 1024)]
        return [Line("N", (*few, *(replace(base, sequences=count) for count in (2, 8, 64))))]
    short, factors = replace(CPU_LINE, length=512), (1, 2, 4, 8)
    return [
        Line("N", tuple(replace(CPU_LINE, length=1024 * factor) for factor in factors)),
        Line("V", tuple(replace(short, vocabulary=8000 * factor) for factor in factors)),
    ]


def quick_plans() -> list[Plan]:
    """One tiny case for each op, for tests and a first look; the sizes are odd on purpose."""
    sizes: dict[str, Any] = {"sequences": 2, "length": 12, "hidden": 24, "vocabulary": 301}
    base = Case(op=OPS[0], prompt_share=0.25, tokens=7, **sizes)
    others = ("pact_kl", "linear_logsumexp", "selected_confidences", "token_scores")
    return [
        planned(base, BASE),
        planned(base, "soft cap", softcap=QUICK_SOFTCAP),
        planned(base, BASE, baseline=RELEASED, op="pact_loss", over="selection"),
        planned(base, "reference", op="pact_loss", cached=True),
        *(planned(base, BASE, op=op) for op in others),
    ]


def cpu_plans() -> list[Plan]:
    """What two cores measure in less than ten minutes: fp32, but for one case."""
    op = "linear_cross_entropy"
    base, loss = make_case(op, SMALL, 1, 512), make_case("pact_loss", SMALL, 1, 256)
    vocabulary = make_case("pact_kl", SMALL, 1, 128)
    kl = replace(vocabulary, over="selection")
    along = {case: line.size for line in lines("cpu") for case in line.cases}
    return [
        planned(base, BASE),
        planned(base, "head", MOST, length=256, trainable_head=True),
        planned(base, "prompt share", MOST, length=256, prompt_share=0.5),
        planned(base, "logits", MOST, length=128, peaked=True),
        planned(base, "soft cap", MOST, length=128, softcap=SOFTCAP),
        planned(base, "dtype", MOST, length=128, dtype="bfloat16"),
        planned(make_case(op, GEMMA, 1, 64), "head size", MOST),
        *(_against_released(SMALL, 4, 512, share) for share in (0.5, 0.9)),
        *(_against_released(GEMMA, 1, 128, share) for share in (0.5, 0.9)),
        *(planned(case, size, FEW) for case, size in along.items()),
        # what the KL adds; the released objective from states is also run by all who can
        planned(loss, BASE, FEW, cached=True),
        planned(loss, "reference", ALONE, length=128),
        planned(loss, "objective", ALONE, over="selection", cached=True),
        *(planned(loss, "K", ALONE, length=128, cached=True, tokens=k) for k in (200, 1000)),
        planned(loss, "peers", baseline=RELEASED, over="selection", prompt_share=0.5),
        planned(kl, BASE),
        *(planned(kl, "K", FEW, tokens=k) for k in (200, 1000)),
        planned(kl, "reference", FEW, cached=True),
        planned(vocabulary, "objective", FEW),
        planned(vocabulary, "reference", FEW, cached=True),
        planned(make_case("linear_logsumexp", SMALL, 1, 128), BASE),
        planned(make_case("selected_confidences", SMALL, 1, 128), BASE),
        planned(make_case("token_scores", SMALL, 2, 64), BASE),
    ]


def cpu_large_plans() -> list[Plan]:
    """What takes longer: the widest head at a whole step's size, and long contexts."""
    return [
        *(_against_released(GEMMA, 4, 512, share) for share in (0.5, 0.9)),
        *(planned(CPU_LINE, "N", ALONE, OURS, length=rows) for rows in (16384, 131072)),
    ]


def _against_released(head: str, sequences: int, length: int, share: float) -> Plan:
    """Its own objective from states, with positions as its step has them."""
    case = make_case("pact_loss", head, sequences, length, prompt_share=share, over="selection")
    return planned(case, "prompt share", TWO, RELEASED)


def gpu_case(op: str, head: str = LLAMA, sequences: int = 8, **options: Any) -> Case:
    """The base: 16384 positions."""
    return make_case(op, head, sequences, 2048, dtype="bfloat16", **options)


def gpu_plans() -> list[Plan]:
    """What one H100 measures in less than nine minutes: bf16, but for one case.

    The base cases, every head, the lengths and the trained head against the fused peers come first;
    few take part in the longest. The released algorithm has 8192 positions and fewer, so that its
    logits fit.
    """
    op = "linear_cross_entropy"
    half: dict[str, Any] = {"over": "selection", "prompt_share": 0.5}
    base, logsumexp = gpu_case(op), gpu_case("linear_logsumexp")
    cached, kl = gpu_case("pact_loss", cached=True), gpu_case("pact_kl", over="selection")
    confidences, everyone = gpu_case("selected_confidences"), (*FUSED, EAGER)
    released = gpu_case("pact_loss", sequences=4, **half)
    along = [case for line in lines("cuda") for case in line.cases if case != base]
    return [
        planned(base, BASE, everyone),
        planned(base, "head", everyone, trainable_head=True),
        planned(logsumexp, BASE, FEW),
        planned(cached, BASE, FEW),
        planned(kl, BASE, FEW),
        planned(confidences, BASE, FEW),
        planned(gpu_case("token_scores"), BASE, FEW, sequences=2),
        *(planned(gpu_case(op, head), "head size", FUSED) for head in OTHER_HEADS),
        planned(gpu_case(op, CAPPED_HEAD), "soft cap", FUSED, softcap=SOFTCAP),
        *(planned(base, "prompt share", FUSED, prompt_share=share) for share in (0.5, 0.9)),
        planned(base, "logits", FUSED, peaked=True),
        planned(base, "dtype", FUSED, sequences=1, dtype="float32"),
        *(planned(case, "N", FUSED if case.rows < 2**16 else LONG) for case in along),
        # what the KL adds
        planned(cached, "objective", ALONE, over="selection"),
        planned(cached, "reference", FEW, cached=False),
        planned(cached, "reference", ALONE, over="selection", cached=False),
        planned(cached, "head", FEW, trainable_head=True),
        *(planned(cached, "K", ALONE, tokens=k) for k in (200, 1000)),
        planned(cached, "logits", ALONE, peaked=True),
        *(planned(cached, "N", ALONE, sequences=count) for count in (1, 64)),
        planned(released, "prompt share", baseline=RELEASED),
        *(planned(released, "prompt share", TWO, RELEASED, prompt_share=x) for x in (0.9, 0.0)),
        *(
            planned(gpu_case("pact_loss", head, 2, **half), "head size", TWO, RELEASED)
            for head in OTHER_HEADS
        ),
        *(planned(kl, "K", FEW, tokens=k) for k in (200, 1000)),
        planned(kl, "reference", FEW, cached=True),
        planned(kl, "objective", FEW, over="vocabulary"),
        planned(kl, "reference", FEW, over="vocabulary", cached=True),
        *(planned(gpu_case("linear_logsumexp", head), "head size", FEW) for head in OTHER_HEADS),
        planned(logsumexp, "N", ALONE, sequences=64),
        planned(confidences, "K", FEW, tokens=1000),
        planned(gpu_case("token_scores", SMALL, 2), "head size", FEW),
        # half of the base's rows, beside what one more line of code gives
        *(planned(case, "N", COMPILED, sequences=4) for case in (base, cached, kl)),
    ]


SUBSETS = {
    "cpu": cpu_plans,
    "cpu-large": cpu_large_plans,
    "gpu": gpu_plans,
    "quick": quick_plans,
}


def plans(subset: str) -> list[Plan]:
    """A set of plans.

    Raises:
        ValueError: there is no such set.
    """
    if subset not in SUBSETS:
        raise ValueError(f"a subset must be one of {', '.join(SUBSETS)}, got {subset!r}")
    return SUBSETS[subset]()
