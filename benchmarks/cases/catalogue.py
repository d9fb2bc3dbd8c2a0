"""Which cases are measured, on which device, and against what.

Each set varies one thing at a time around a base case, and a plan says which thing. Plans stand in
the order of their importance, so that a run that is cut off has measured what matters most.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases.case import Case
from benchmarks.cases.cpu import cpu_large_plans, cpu_lines, cpu_plans
from benchmarks.cases.gpu import gpu_lines, gpu_plans
from benchmarks.cases.plan import BASE, RELEASED, Line, Plan

SUBSETS = ("cpu", "cpu-large", "gpu", "quick")


QUICK_SOFTCAP = 3.0
"""Less than two standard deviations of the logits: it bends most of them."""


def plans(subset: str) -> list[Plan]:
    """A set of plans.

    Raises:
        ValueError: there is no such set.
    """
    made = {
        "cpu": cpu_plans,
        "cpu-large": cpu_large_plans,
        "gpu": gpu_plans,
        "quick": quick_plans,
    }
    if subset not in made:
        raise ValueError(f"a subset must be one of {', '.join(SUBSETS)}, got {subset!r}")
    return made[subset]()


def lines(device: str) -> list[Line]:
    """The lines of a device's set."""
    return gpu_lines() if device == "cuda" else cpu_lines()


def quick_plans() -> list[Plan]:
    """One tiny case for each op, for tests and a first look; the sizes are odd on purpose."""
    base = Case(
        op="linear_cross_entropy",
        sequences=2,
        length=12,
        hidden=24,
        vocabulary=301,
        prompt_share=0.25,
        tokens=7,
    )
    released = replace(base, op="pact_loss", over="selection")
    return [
        Plan(case=base, varied=BASE),
        Plan(case=replace(base, softcap=QUICK_SOFTCAP), varied="soft cap"),
        Plan(case=released, varied=BASE, baseline=RELEASED),
        Plan(case=replace(base, op="pact_loss", cached=True), varied="reference"),
        *(
            Plan(case=replace(base, op=op), varied=BASE)
            for op in ("pact_kl", "linear_logsumexp", "selected_confidences", "token_scores")
        ),
    ]
