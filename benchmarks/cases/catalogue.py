"""Which cases are measured, on which device, and against what.

Each set varies one thing at a time around a base case, and a plan says which thing. Plans stand in
the order of their importance, so that a run that is cut off has measured what matters most.
"""

from __future__ import annotations

from benchmarks.cases.case import OPS, Case
from benchmarks.cases.cpu import cpu_large_plans, cpu_lines, cpu_plans
from benchmarks.cases.gpu import gpu_lines, gpu_plans
from benchmarks.cases.plan import BASE, RELEASED, Line, Plan, planned

SUBSETS = ("cpu", "cpu-large", "gpu", "quick")
QUICK_SOFTCAP = 3.0
"""Less than two standard deviations of the logits: it bends most of them."""


def plans(subset: str) -> list[Plan]:
    """A set of plans.

    Raises:
        ValueError: there is no such set.
    """
    makers = cpu_plans, cpu_large_plans, gpu_plans, quick_plans
    if subset not in SUBSETS:
        raise ValueError(f"a subset must be one of {', '.join(SUBSETS)}, got {subset!r}")
    return dict(zip(SUBSETS, makers, strict=True))[subset]()


def lines(device: str) -> list[Line]:
    """The lines of a device's set."""
    return gpu_lines() if device == "cuda" else cpu_lines()


def quick_plans() -> list[Plan]:
    """One tiny case for each op, for tests and a first look; the sizes are odd on purpose."""
    base = Case(
        op=OPS[0],
        sequences=2,
        length=12,
        hidden=24,
        vocabulary=301,
        prompt_share=0.25,
        tokens=7,
    )
    others = ("pact_kl", "linear_logsumexp", "selected_confidences", "token_scores")
    return [
        planned(base, BASE),
        planned(base, "soft cap", softcap=QUICK_SOFTCAP),
        planned(base, BASE, baseline=RELEASED, op="pact_loss", over="selection"),
        planned(base, "reference", op="pact_loss", cached=True),
        *(planned(base, BASE, op=op) for op in others),
    ]
