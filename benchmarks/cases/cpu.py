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
    planned,
)

ALONE, FEW, TWO = (OURS,), (OURS, EAGER), (OURS, RELEASED)
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
LINE = Case(op="linear_cross_entropy", sequences=1, length=1024, hidden=128, vocabulary=8000)
"""1024 rows are one chunk on a CPU: from there on a change of memory is no change of a chunk's."""


def cpu_plans() -> list[Plan]:
    """fp32, but for one case."""
    return [
        *_cross_entropy(),
        *(
            _against_released(*sizes, share)
            for sizes in ((SMALL, 4, 512), (GEMMA, 1, 128))
            for share in (0.5, 0.9)
        ),
        *_along_lines(),
        *_losses(),
        *_others(),
    ]


def cpu_large_plans() -> list[Plan]:
    """What takes longer: the widest head at a whole step's size, and long contexts."""
    return [
        *(_against_released(GEMMA, 4, 512, share) for share in (0.5, 0.9)),
        *(planned(LINE, "N", ALONE, OURS, length=length) for length in LONG),
    ]


def cpu_lines() -> list[Line]:
    short, factors = replace(LINE, length=512), (1, 2, 4, 8)
    return [
        Line("N", tuple(replace(LINE, length=1024 * factor) for factor in factors)),
        Line("V", tuple(replace(short, vocabulary=8000 * factor) for factor in factors)),
    ]


def _along_lines() -> list[Plan]:
    varied = {case: line.size for line in cpu_lines() for case in line.cases}
    return [planned(case, size, FEW) for case, size in varied.items()]


def _cross_entropy() -> list[Plan]:
    """Against every peer that comes near."""
    op = "linear_cross_entropy"
    base = make_case(op, SMALL, 1, 512)
    return [
        planned(base, BASE),
        planned(base, "head", MOST, length=256, trainable_head=True),
        planned(base, "prompt share", MOST, length=256, prompt_share=0.5),
        planned(base, "logits", MOST, length=128, peaked=True),
        planned(base, "soft cap", MOST, length=128, softcap=SOFTCAP),
        planned(base, "dtype", MOST, length=128, dtype="bfloat16"),
        planned(make_case(op, GEMMA, 1, 64), "head size", MOST),
    ]


def _against_released(head: str, sequences: int, length: int, share: float) -> Plan:
    """Its own objective from states, with positions as its step has them."""
    case = make_case("pact_loss", head, sequences, length, prompt_share=share, over="selection")
    return planned(case, "prompt share", TWO, RELEASED)


def _losses() -> list[Plan]:
    """What the KL adds; the released objective from states is also run by all who can."""
    loss = make_case("pact_loss", SMALL, 1, 256)
    return [
        planned(loss, BASE, FEW, cached=True),
        planned(loss, "reference", ALONE, length=128),
        planned(loss, "objective", ALONE, over="selection", cached=True),
        *(planned(loss, "K", ALONE, length=128, cached=True, tokens=k) for k in (200, 1000)),
        planned(loss, "peers", baseline=RELEASED, over="selection", prompt_share=0.5),
    ]


def _others() -> list[Plan]:
    vocabulary = make_case("pact_kl", SMALL, 1, 128)
    kl = replace(vocabulary, over="selection")
    return [
        planned(kl, BASE),
        *(planned(kl, "K", FEW, tokens=k) for k in (200, 1000)),
        planned(kl, "reference", FEW, cached=True),
        planned(vocabulary, "objective", FEW),
        planned(vocabulary, "reference", FEW, cached=True),
        *(
            planned(make_case(op, SMALL, 1, 128), BASE)
            for op in ("linear_logsumexp", "selected_confidences")
        ),
        planned(make_case("token_scores", SMALL, 2, 64), BASE),
    ]
