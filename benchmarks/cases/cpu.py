"""The cases that two cores measure in less than ten minutes.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases.case import Case
from benchmarks.cases.plan import BASE, EAGER, GEMMA, OURS, RELEASED, SMALL, Line, Plan, make_case

FEW = (OURS, EAGER)


def cpu_plans() -> list[Plan]:
    """fp32, but for one case."""
    return [
        *_cross_entropy(),
        *_against_released(),
        *_losses(),
        *_others(),
        *_along_lines(),
    ]


def cpu_lines() -> list[Line]:
    """512 rows of this head's logits are one slab of a CPU's workspace.

    So every N is cut into slabs of one length, and a change of memory is no change of theirs.
    """
    base = Case(op="linear_cross_entropy", sequences=1, length=512, hidden=128, vocabulary=32000)
    factors = (1, 2, 4, 8)
    return [
        Line("N", tuple(replace(base, length=512 * factor) for factor in factors)),
        Line("V", tuple(replace(base, vocabulary=8000 * factor) for factor in factors)),
    ]


def _cross_entropy() -> list[Plan]:
    """Against every peer."""
    op = "linear_cross_entropy"
    base = make_case(op, SMALL, 1, 512)
    half = replace(base, length=256)
    return [
        Plan(case=base, varied=BASE),
        Plan(case=replace(half, trainable_head=True), varied="head"),
        Plan(case=replace(half, prompt_share=0.5), varied="prompt share"),
        Plan(case=replace(half, length=128, peaked=True), varied="logits"),
        Plan(case=replace(half, length=128, dtype="bfloat16"), varied="dtype"),
        Plan(case=make_case(op, GEMMA, 1, 64), varied="head size"),
    ]


def _against_released() -> list[Plan]:
    """With positions as the released step has them: its own objective from states, and ours."""
    ours = make_case("pact_loss", SMALL, 4, 512, prompt_share=0.5, cached=True)
    return [
        Plan(
            case=make_case("pact_loss", head, sequences, 512, prompt_share=share, over="selection"),
            varied="prompt share",
            baseline=RELEASED,
            only=(OURS, RELEASED),
        )
        for head, sequences in ((SMALL, 4), (GEMMA, 1))
        for share in (0.5, 0.9)
    ] + [Plan(case=ours, varied="objective", baseline=RELEASED, only=(OURS, RELEASED))]


def _losses() -> list[Plan]:
    """What the KL adds; the released objective from states is also run by all who can."""
    vocabulary = make_case("pact_loss", SMALL, 1, 512)
    cached, alone = replace(vocabulary, cached=True), (OURS,)
    selection = replace(vocabulary, over="selection")
    everyone = replace(selection, length=256, prompt_share=0.5)
    return [
        Plan(case=cached, varied=BASE, only=FEW),
        Plan(case=replace(vocabulary, length=256), varied="reference", only=alone),
        Plan(case=replace(selection, cached=True), varied="objective", only=alone),
        *(
            Plan(case=replace(cached, length=256, tokens=k), varied="K", only=alone)
            for k in (200, 1000)
        ),
        Plan(case=everyone, varied="peers", baseline=RELEASED),
    ]


def _others() -> list[Plan]:
    vocabulary = make_case("pact_kl", SMALL, 1, 256)
    kl = replace(vocabulary, over="selection")
    return [
        Plan(case=kl, varied=BASE),
        *(Plan(case=replace(kl, tokens=k), varied="K", only=FEW) for k in (200, 1000)),
        Plan(case=replace(kl, cached=True), varied="reference", only=FEW),
        Plan(case=vocabulary, varied="objective", only=FEW),
        Plan(case=replace(vocabulary, cached=True), varied="reference", only=FEW),
        *(
            Plan(case=make_case(op, SMALL, 1, 256), varied=BASE)
            for op in ("linear_logsumexp", "selected_confidences")
        ),
        Plan(case=make_case("token_scores", SMALL, 2, 64), varied=BASE),
    ]


def _along_lines() -> list[Plan]:
    varied = {case: line.size for line in cpu_lines() for case in line.cases}
    return [Plan(case=case, varied=size, only=FEW) for case, size in varied.items()]
