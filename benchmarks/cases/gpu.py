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
)

OTHER_HEADS = tuple(head for head in HEADS if head != LLAMA)
ALONE, FEW = (OURS,), (OURS, EAGER)
FUSED = (OURS, "torch linear_cross_entropy", "Liger", "cut-cross-entropy", "quack", "TRL")
COMPILED = "torch.compile"
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
    everyone = (*FUSED, EAGER)
    return [
        Plan(case=gpu_case("linear_cross_entropy"), varied=BASE, only=everyone),
        Plan(
            case=gpu_case("linear_cross_entropy", trainable_head=True),
            varied="head",
            only=everyone,
        ),
        Plan(case=gpu_case("linear_logsumexp"), varied=BASE, only=FEW),
        Plan(case=gpu_case("pact_loss", cached=True), varied=BASE, only=FEW),
        Plan(case=gpu_case("pact_kl", over="selection"), varied=BASE, only=FEW),
        Plan(case=gpu_case("selected_confidences"), varied=BASE, only=FEW),
        Plan(case=gpu_case("token_scores", sequences=2), varied=BASE, only=FEW),
    ]


def _compiled() -> list[Plan]:
    """Half of the base's rows, beside what one more line of code gives."""
    cases = (
        gpu_case("linear_cross_entropy", sequences=4),
        gpu_case("pact_loss", sequences=4, cached=True),
        gpu_case("pact_kl", sequences=4, over="selection"),
    )
    return [Plan(case=case, varied="N", only=(OURS, EAGER, COMPILED)) for case in cases]


def _losses() -> list[Plan]:
    """What the KL adds."""
    cached = gpu_case("pact_loss", cached=True)
    return [
        Plan(case=replace(cached, over="selection"), varied="objective", only=ALONE),
        Plan(case=replace(cached, cached=False), varied="reference", only=FEW),
        Plan(case=gpu_case("pact_loss", over="selection"), varied="reference", only=ALONE),
        Plan(case=replace(cached, trainable_head=True), varied="head", only=FEW),
        *(Plan(case=replace(cached, tokens=k), varied="K", only=ALONE) for k in (200, 1000)),
        Plan(case=replace(cached, peaked=True), varied="logits", only=ALONE),
        *(Plan(case=replace(cached, sequences=count), varied="N", only=ALONE) for count in (1, 64)),
    ]


def _against_released() -> list[Plan]:
    """8192 positions and fewer, so that the released algorithm's logits fit."""
    half = gpu_case("pact_loss", sequences=4, over="selection", prompt_share=0.5)
    two = (OURS, RELEASED)
    return [
        Plan(case=half, varied="prompt share", baseline=RELEASED),
        *(
            Plan(
                case=replace(half, prompt_share=share),
                varied="prompt share",
                baseline=RELEASED,
                only=two,
            )
            for share in (0.9, 0.0)
        ),
        *(
            Plan(
                case=gpu_case("pact_loss", head, 2, over="selection", prompt_share=0.5),
                varied="head size",
                baseline=RELEASED,
                only=two,
            )
            for head in OTHER_HEADS
        ),
    ]


def _cross_entropy() -> list[Plan]:
    op = "linear_cross_entropy"
    base = gpu_case(op)
    line = [case for line in gpu_lines() for case in line.cases if case != base]
    return [
        *(Plan(case=gpu_case(op, head), varied="head size", only=FUSED) for head in OTHER_HEADS),
        Plan(case=gpu_case(op, CAPPED_HEAD, softcap=SOFTCAP), varied="soft cap", only=FUSED),
        *(
            Plan(case=replace(base, prompt_share=share), varied="prompt share", only=FUSED)
            for share in (0.5, 0.9)
        ),
        Plan(case=replace(base, peaked=True), varied="logits", only=FUSED),
        Plan(case=replace(base, sequences=1, dtype="float32"), varied="dtype", only=FUSED),
        *(Plan(case=case, varied="N", only=FUSED if case.rows < 2**16 else LONG) for case in line),
    ]


def _others() -> list[Plan]:
    kl, logsumexp = gpu_case("pact_kl", over="selection"), gpu_case("linear_logsumexp")
    return [
        *(Plan(case=replace(kl, tokens=k), varied="K", only=FEW) for k in (200, 1000)),
        Plan(case=replace(kl, cached=True), varied="reference", only=FEW),
        Plan(case=replace(kl, over="vocabulary"), varied="objective", only=FEW),
        Plan(case=replace(kl, over="vocabulary", cached=True), varied="reference", only=FEW),
        *(
            Plan(case=gpu_case("linear_logsumexp", head), varied="head size", only=FEW)
            for head in OTHER_HEADS
        ),
        Plan(case=replace(logsumexp, sequences=64), varied="N", only=ALONE),
        Plan(case=gpu_case("selected_confidences", tokens=1000), varied="K", only=FEW),
        Plan(case=gpu_case("token_scores", SMALL, 2), varied="head size", only=FEW),
    ]
