"""The cases that one H100 measures in less than nine minutes, those that matter most first.

The base cases, every head, the lengths and the trained head against the fused peers come in the
first four. torch.compile takes many seconds for every shape there: it takes part in three cases,
last of all. Few take part in the longest.

Legend: N rows, K selected tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases.case import Case
from benchmarks.cases.plan import (
    BASE,
    CAPPED_HEAD,
    EAGER,
    HEADS,
    LLAMA,
    OURS,
    RELEASED,
    SMALL,
    SOFTCAP,
    Line,
    Plan,
    make_case,
    planned,
)

OTHER_HEADS = tuple(head for head in HEADS if head != LLAMA)
ALONE, FEW, TWO = (OURS,), (OURS, EAGER), (OURS, RELEASED)
FUSED = (OURS, "torch linear_cross_entropy", "Liger", "cut-cross-entropy", "quack", "TRL")
COMPILED = (OURS, EAGER, "torch.compile")
LONG = (OURS, "Liger", "cut-cross-entropy")


def gpu_plans() -> list[Plan]:
    """bf16, but for one case."""
    return [
        *_bases(),
        *_cross_entropy(),
        *_losses(),
        *_against_released(),
        *_others(),
        *_compiled(),
    ]


def gpu_lines() -> list[Line]:
    """From 256 rows to a long context."""
    base = gpu_case("linear_cross_entropy")
    few = [replace(base, sequences=1, length=rows) for rows in (256, 1024)]
    many = [replace(base, sequences=count) for count in (2, 8, 64)]
    return [Line("N", (*few, *many))]


def gpu_case(op: str, head: str = LLAMA, sequences: int = 8, **options: Any) -> Case:
    """The base: 16384 positions."""
    return make_case(op, head, sequences, 2048, dtype="bfloat16", **options)


def _bases() -> list[Plan]:
    """What the figures are about."""
    cross_entropy, everyone = gpu_case("linear_cross_entropy"), (*FUSED, EAGER)
    return [
        planned(cross_entropy, BASE, everyone),
        planned(cross_entropy, "head", everyone, trainable_head=True),
        planned(gpu_case("linear_logsumexp"), BASE, FEW),
        planned(gpu_case("pact_loss"), BASE, FEW, cached=True),
        planned(gpu_case("pact_kl"), BASE, FEW, over="selection"),
        planned(gpu_case("selected_confidences"), BASE, FEW),
        planned(gpu_case("token_scores"), BASE, FEW, sequences=2),
    ]


def _compiled() -> list[Plan]:
    """Half of the base's rows, beside what one more line of code gives."""
    return [
        planned(gpu_case("linear_cross_entropy"), "N", COMPILED, sequences=4),
        planned(gpu_case("pact_loss"), "N", COMPILED, sequences=4, cached=True),
        planned(gpu_case("pact_kl"), "N", COMPILED, sequences=4, over="selection"),
    ]


def _losses() -> list[Plan]:
    """What the KL adds."""
    cached = gpu_case("pact_loss", cached=True)
    return [
        planned(cached, "objective", ALONE, over="selection"),
        planned(cached, "reference", FEW, cached=False),
        planned(cached, "reference", ALONE, over="selection", cached=False),
        planned(cached, "head", FEW, trainable_head=True),
        *(planned(cached, "K", ALONE, tokens=k) for k in (200, 1000)),
        planned(cached, "logits", ALONE, peaked=True),
        *(planned(cached, "N", ALONE, sequences=count) for count in (1, 64)),
    ]


def _against_released() -> list[Plan]:
    """8192 positions and fewer, so that the released algorithm's logits fit."""
    half: dict[str, Any] = {"over": "selection", "prompt_share": 0.5}
    base = gpu_case("pact_loss", sequences=4, **half)
    others = [gpu_case("pact_loss", head, 2, **half) for head in OTHER_HEADS]
    return [
        planned(base, "prompt share", baseline=RELEASED),
        *(planned(base, "prompt share", TWO, RELEASED, prompt_share=each) for each in (0.9, 0.0)),
        *(planned(case, "head size", TWO, RELEASED) for case in others),
    ]


def _cross_entropy() -> list[Plan]:
    op = "linear_cross_entropy"
    base = gpu_case(op)
    line = [case for line in gpu_lines() for case in line.cases if case != base]
    return [
        *(planned(gpu_case(op, head), "head size", FUSED) for head in OTHER_HEADS),
        planned(gpu_case(op, CAPPED_HEAD), "soft cap", FUSED, softcap=SOFTCAP),
        *(planned(base, "prompt share", FUSED, prompt_share=share) for share in (0.5, 0.9)),
        planned(base, "logits", FUSED, peaked=True),
        planned(base, "dtype", FUSED, sequences=1, dtype="float32"),
        *(planned(case, "N", FUSED if case.rows < 2**16 else LONG) for case in line),
    ]


def _others() -> list[Plan]:
    kl, logsumexp = gpu_case("pact_kl", over="selection"), gpu_case("linear_logsumexp")
    return [
        *(planned(kl, "K", FEW, tokens=k) for k in (200, 1000)),
        planned(kl, "reference", FEW, cached=True),
        planned(kl, "objective", FEW, over="vocabulary"),
        planned(kl, "reference", FEW, over="vocabulary", cached=True),
        *(planned(gpu_case("linear_logsumexp", head), "head size", FEW) for head in OTHER_HEADS),
        planned(logsumexp, "N", ALONE, sequences=64),
        planned(gpu_case("selected_confidences"), "K", FEW, tokens=1000),
        planned(gpu_case("token_scores", SMALL, 2), "head size", FEW),
    ]
