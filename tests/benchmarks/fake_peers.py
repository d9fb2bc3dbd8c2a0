"""Peers that misbehave in known ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.every_op import Eager
from benchmarks.peers.peer import OF_HIDDEN, Call, Outputs, Setting

BALLAST_MIB = 200
TICKS: list[float] = []
"""Milliseconds that went by, as far as `ticking` knows."""


def ticking(call: Callable[[], object]) -> float:
    """A clock for tests: 1 ms, and what a slow call says."""
    before_ms = sum(TICKS)
    call()
    return 1.0 + sum(TICKS) - before_ms


class Fake(Eager):
    """Eager torch, with something done to it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return super().prepare(case, inputs, super().settings(case, inputs.hidden.device)[0])


class Changed(Fake):
    """Its outputs pass through a function of the case and themselves."""

    def __init__(self, name: str, change: Callable[[Case, Outputs], Outputs]) -> None:
        super().__init__(name)
        self.change = change

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        call = super().prepare(case, inputs, setting)
        return lambda: self.change(case, call())


class Missing(Fake):
    def version(self) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return f"{self.name} is not installed"


class Failing(Fake):
    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        raise RuntimeError("the paper\nhas run out")


class Choosy(Fake):
    """One setting is slow by `ticking`, one fails, one is quick."""

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{"way": "slow"}, {"way": "failing"}, {"way": "quick"}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        call = super().prepare(case, inputs, setting)
        if setting["way"] == "failing":
            raise RuntimeError("cannot")

        def slow() -> Outputs:
            TICKS.append(50.0)
            return call()

        return slow if setting["way"] == "slow" else call


class OtherObjective(Changed):
    def other_objective(self, case: Case) -> str | None:
        return "twice the loss"


class Hungry(Fake):
    """Holds BALLAST_MIB for a moment in every call."""

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        call = super().prepare(case, inputs, setting)

        def hungry() -> Outputs:
            torch.ones(BALLAST_MIB * 2**18)  # of 4 bytes
            return call()

        return hungry


def louder(case: Case, outputs: Outputs) -> Outputs:
    """A loss that is off by a hundredth of a percent: fifty times what fp32 may cost."""
    return {**outputs, "loss": outputs["loss"] * 1.0001}


def late(case: Case, outputs: Outputs) -> Outputs:
    """Loses the gradient of rows past the 400th: right on every case that is small."""
    gradient = outputs[OF_HIDDEN].clone()
    gradient[400:] = 0.0
    return {**outputs, OF_HIDDEN: gradient}


def silent(case: Case, outputs: Outputs) -> Outputs:
    """Returns no gradient."""
    return {"loss": outputs["loss"]}


RIGHT, WRONG, LATE, SILENT = (
    Fake("right"),
    Changed("wrong", louder),
    Changed("late", late),
    Changed("silent", silent),
)
MISSING, FAILING, CHOOSY, HUNGRY = (
    Missing("missing"),
    Failing("failing"),
    Choosy("choosy"),
    Hungry("hungry"),
)
OTHER = OtherObjective("other", louder)
