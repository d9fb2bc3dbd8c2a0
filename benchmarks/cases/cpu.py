"""The cases that two cores measure in less than ten minutes, and larger ones.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases.case import Case
from benchmarks.cases.plan import (
    BASE,
    EAGER,
    GEMMA,
    OURS,
    RELEASED,
    SMALL,
    SOFTCAP,
    Line,
    Plan,
    make_case,
)

FEW = (OURS, EAGER)
MOST = (
    OURS,
    EAGER,
    "torch.compile",
    "torch linear_cross_entropy",
    "cut-cross-entropy",
    "Liger",
    "quack",
)
"""All but TRL, whose tiles take twice the time of the others here: the first case shows it."""
LONG = (16384, 131072)
"""Rows of a long context."""


def cpu_plans() -> list[Plan]:
    """fp32, but for one case."""
    return [
        *_cross_entropy(),
        *_against_released(),
        *_along_lines(),
        *_losses(),
        *_others(),
    ]


def cpu_large_plans() -> list[Plan]:
    """What takes longer: the widest head at a whole step's size, and long contexts."""
    return [
        *(
            Plan(
                case=make_case("pact_loss", GEMMA, 4, 512, prompt_share=share, over="selection"),
                varied="prompt share",
                baseline=RELEASED,
                only=(OURS, RELEASED),
            )
            for share in (0.5, 0.9)
        ),
        *(
            Plan(case=replace(LINE, length=length), varied="N", baseline=OURS, only=(OURS,))
            for length in LONG
        ),
    ]


LINE = Case(op="linear_cross_entropy", sequences=1, length=1024, hidden=128, vocabulary=8000)
"""1024 rows are one chunk on a CPU: from there on a change of memory is no change of a chunk's."""


def cpu_lines() -> list[Line]:
    short, factors = replace(LINE, length=512), (1, 2, 4, 8)
    return [
        Line("N", tuple(replace(LINE, length=1024 * factor) for factor in factors)),
        Line("V", tuple(replace(short, vocabulary=8000 * factor) for factor in factors)),
    ]


def _cross_entropy() -> list[Plan]:
    """Against every peer that comes near."""
    op = "linear_cross_entropy"
    base = make_case(op, SMALL, 1, 512)
    half = replace(base, length=256)
    return [
        Plan(case=base, varied=BASE),
        Plan(case=replace(half, trainable_head=True), varied="head", only=MOST),
        Plan(case=replace(half, prompt_share=0.5), varied="prompt share", only=MOST),
        Plan(case=replace(half, length=128, peaked=True), varied="logits", only=MOST),
        Plan(case=replace(half, length=128, softcap=SOFTCAP), varied="soft cap", only=MOST),
        Plan(case=replace(half, length=128, dtype="bfloat16"), varied="dtype", only=MOST),
        Plan(case=make_case(op, GEMMA, 1, 64), varied="head size", only=MOST),
    ]


def _against_released() -> list[Plan]:
    """Its own objective from states, with positions as its step has them."""
    return [
        Plan(
            case=make_case(
                "pact_loss", head, sequences, length, prompt_share=share, over="selection"
            ),
            varied="prompt share",
            baseline=RELEASED,
            only=(OURS, RELEASED),
        )
        for head, sequences, length, share in (
            (SMALL, 4, 512, 0.5),
            (SMALL, 4, 512, 0.9),
            (GEMMA, 1, 128, 0.5),
            (GEMMA, 1, 128, 0.9),
        )
    ]


def _losses() -> list[Plan]:
    """What the KL adds; the released objective from states is also run by all who can."""
    vocabulary = make_case("pact_loss", SMALL, 1, 256)
    cached, alone = replace(vocabulary, cached=True), (OURS,)
    selection = replace(vocabulary, over="selection")
    everyone = replace(selection, prompt_share=0.5)
    short = replace(vocabulary, length=128)
    return [
        Plan(case=cached, varied=BASE, only=FEW),
        Plan(case=short, varied="reference", only=alone),
        Plan(case=replace(selection, cached=True), varied="objective", only=alone),
        *(
            Plan(case=replace(short, cached=True, tokens=k), varied="K", only=alone)
            for k in (200, 1000)
        ),
        Plan(case=everyone, varied="peers", baseline=RELEASED),
    ]


def _others() -> list[Plan]:
    vocabulary = make_case("pact_kl", SMALL, 1, 128)
    kl = replace(vocabulary, over="selection")
    return [
        Plan(case=kl, varied=BASE),
        *(Plan(case=replace(kl, tokens=k), varied="K", only=FEW) for k in (200, 1000)),
        Plan(case=replace(kl, cached=True), varied="reference", only=FEW),
        Plan(case=vocabulary, varied="objective", only=FEW),
        Plan(case=replace(vocabulary, cached=True), varied="reference", only=FEW),
        *(
            Plan(case=make_case(op, SMALL, 1, 128), varied=BASE)
            for op in ("linear_logsumexp", "selected_confidences")
        ),
        Plan(case=make_case("token_scores", SMALL, 2, 64), varied=BASE),
    ]


def _along_lines() -> list[Plan]:
    varied = {case: line.size for line in cpu_lines() for case in line.cases}
    return [Plan(case=case, varied=size, only=FEW) for case, size in varied.items()]
