"""Whether a result is right: against naive in float64, within what the dtype itself costs.

An error is the norm of the difference over the norm of the truth. It may be twice that of the same
dense formula in eager torch at the same dtype, plus a small floor, since eager is sometimes right
by luck, plus one rounding step of the result's dtype where eager's has more bits: a loss in bf16 is
coarse, but not wrong. Two things are compared before an implementation is timed: all values and
gradients of a case of fewer rows, and some rows of the timed case itself, whose indices are as
large as they get. A case that is small already is compared as a whole.

`torch.testing.assert_close` bounds single entries by constants; here the bound is what the dtype
costs the same formula, and the verdict is a number for the table.

Legend: N rows, D hidden size, K selected tokens, R rows that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases.case import IGNORE, TRAINED, Case, Inputs, make_inputs
from benchmarks.peers.every_op import Eager
from benchmarks.peers.naive import fewer_rows, oracle
from benchmarks.peers.peer import OF_HIDDEN, Outputs

FACTOR = 2.0
FLOORS = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-4, "bfloat16": 1e-3}
"""By dtype: 16 roundings of float32, a fifth of one of float16, an eighth of one of bfloat16."""
CHECKED_ROWS = 256
"""Most rows of the smaller case."""
ORACLE_BYTES = 100
"""What the oracle takes for a row and token of the vocabulary, roughly."""
MOST_ORACLE_BYTES = 2**31
SAMPLED_ROWS = 16
"""Rows of the timed case that are compared."""


class Verdict(NamedTuple):
    """How near one result is to the oracle's."""

    error: float
    """The largest relative error of its tensors."""
    fraction: float
    """The largest fraction of its bound that an error takes up."""
    name: str
    """The tensor with that fraction."""

    @property
    def right(self) -> bool:
        return self.fraction <= 1.0

    def __str__(self) -> str:
        return f"{self.name} is off by {self.error:.2g}, {self.fraction:.3g} of what is allowed"


class Truth(NamedTuple):
    """One of the oracle's results."""

    tensor: Tensor
    """In float64."""
    bound: float
    """The largest relative error that counts as equal."""
    step: float
    """Rounding step of the dtype in which eager returns it."""


def truths_of(case: Case, inputs: Inputs) -> dict[str, Truth]:
    """By the oracle in float64, and bounds by eager torch in the case's dtype."""
    rounded = Eager().prepare(case, inputs, {})()

    def truth(name: str, tensor: Tensor) -> Truth:
        bound = FACTOR * relative_error(rounded[name], tensor) + FLOORS[case.dtype]
        return Truth(tensor, bound, _step(rounded[name]))

    return {name: truth(name, exact.double()) for name, exact in oracle(case, inputs).items()}


def judge(outputs: Outputs, truths: Mapping[str, Truth]) -> Verdict:
    """The verdict on what a call returned; what it lacks, or has in another shape, is wrong."""
    verdicts = []
    for name, truth in truths.items():
        if name not in outputs or outputs[name].shape != truth.tensor.shape:
            return Verdict(float("inf"), float("inf"), name)
        error, step = relative_error(outputs[name], truth.tensor), _step(outputs[name])
        bound = truth.bound + (step if step > truth.step else 0.0)
        verdicts.append(Verdict(error, error / bound, name))
    worst = max(verdicts, key=lambda verdict: verdict.fraction)
    return worst._replace(error=max(verdict.error for verdict in verdicts))


def relative_error(tensor: Tensor, truth: Tensor) -> float:
    """|tensor - truth| / |truth|; infinite where a value is not finite."""
    difference = torch.linalg.vector_norm(tensor.double() - truth)
    error = float(difference / torch.linalg.vector_norm(truth).clamp(min=1e-30))
    return error if error == error else float("inf")


def _step(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


class Sample:
    """Some rows of a case, from the first to the last, as a case of their own.

    A row's results do not depend on the other rows, but for the denominator N of the loss.
    """

    def __init__(self, case: Case, inputs: Inputs, count: int = SAMPLED_ROWS) -> None:
        rows = case.rows
        picked = torch.linspace(0, rows - 1, min(count, rows), device=inputs.target.device).long()
        positions = (inputs.target != IGNORE).nonzero().squeeze(1)[picked]  # (R,)
        self.case = replace(case, sequences=1, length=len(picked), prompt_share=0.0)
        self.inputs = inputs._replace(
            hidden=inputs.hidden.detach()[positions].requires_grad_(inputs.hidden.requires_grad),
            target=inputs.target[positions],
            reference_hidden=inputs.reference_hidden[positions],
            reference_post=inputs.reference_post[picked],
            step=inputs.step[picked],
        )
        self.picked, self.positions = picked, positions
        self.rows, self.num_positions = rows, case.positions

    def of(self, outputs: Outputs) -> dict[str, Tensor]:
        """What a call on the whole case says of these rows, as a call on them alone would."""
        if self.case.op in TRAINED:
            gradient = outputs[OF_HIDDEN][self.positions]  # (R, D)
            return {OF_HIDDEN: gradient.double() * (self.rows / len(self.picked))}
        return {
            name: tensor[self.positions if len(tensor) == self.num_positions else self.picked]
            for name, tensor in outputs.items()
        }


class Checker:
    """Judges the results of the implementations of one case, timed with these inputs."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = fewer_rows(case, checked_rows(case))
        """The smaller one, or `case` itself."""
        self.whole = self.case == case
        """Whether it is the timed case itself that is compared."""
        self.inputs = inputs if self.whole else make_inputs(self.case, inputs.hidden.device)
        self.truths = truths_of(self.case, self.inputs)
        self.sample: Sample | None = None
        if not self.whole and case.op != "token_scores":  # whose results are means over rows
            self.sample = Sample(case, inputs)
            truths = truths_of(self.sample.case, self.sample.inputs)
            self.sample_truths = {OF_HIDDEN: truths[OF_HIDDEN]} if case.op in TRAINED else truths

    def judge(self, outputs: Outputs) -> Verdict:
        """All that a call on the smaller case returned."""
        return judge(outputs, self.truths)

    def judge_sample(self, outputs: Outputs) -> Verdict | None:
        """Some rows of what a call on the timed case returned; None where there is no sample."""
        if self.sample is None:
            return None
        verdict = judge(self.sample.of(outputs), self.sample_truths)
        return verdict._replace(name=f"{verdict.name} in some rows")


def checked_rows(case: Case) -> int:
    """Rows of the smaller case."""
    most = MOST_ORACLE_BYTES // (ORACLE_BYTES * case.vocabulary)
    return max(SAMPLED_ROWS, min(CHECKED_ROWS, most))
