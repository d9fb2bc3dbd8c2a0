"""What counts as right: bounds, samples of rows, and what is compared as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import Case, make_inputs
from benchmarks.measuring.equality import CHECKED_ROWS, Checker, Sample, Truth, checked_rows, judge
from benchmarks.peers.every_op import Eager, Ours
from benchmarks.peers.naive import oracle
from benchmarks.peers.peer import Outputs, Peer

CPU = torch.device("cpu")
CASE = Case(  # 600 rows, more than are compared as a whole; V odd
    op="pact_loss",
    sequences=4,
    length=200,
    hidden=12,
    vocabulary=97,
    prompt_share=0.25,
    tokens=5,
    cached=True,
)


def outputs_of(peer: Peer, case: Case, checker_inputs: object) -> Outputs:
    return peer.prepare(case, checker_inputs, {})()  # type: ignore[arg-type]


def test_an_error_is_of_norms_and_a_share_of_its_bound() -> None:
    truth = {"loss": Truth(torch.tensor([3.0, 4.0]).double(), 0.5, 2.0**-23)}
    verdict = judge({"loss": torch.tensor([3.0, 5.0])}, truth)
    assert (verdict.error, verdict.fraction, verdict.name) == (0.2, 0.4, "loss")
    assert verdict.right
    assert not judge({"loss": torch.tensor([3.0, 7.0])}, truth).right


def test_a_result_of_fewer_bits_than_eagers_may_be_off_by_a_rounding_step() -> None:
    step = 2.0**-7  # of bfloat16
    loss = torch.tensor(1.0 + step, dtype=torch.bfloat16)
    truth = {"loss": Truth(torch.tensor(1.0).double(), 1e-6, 2.0**-23)}
    assert judge({"loss": loss}, truth).right
    assert not judge({"loss": loss.float()}, truth).right
    assert not judge({"loss": loss + step}, truth).right
    coarse = {"loss": truth["loss"]._replace(step=step)}  # as of a gradient, which eager rounds too
    assert not judge({"loss": loss}, coarse).right


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"loss": torch.tensor([3.0, 4.0, 0.0])},
        {"loss": torch.tensor([3.0, float("nan")])},
        {"loss": torch.tensor([3.0, float("inf")])},
    ],
)
def test_what_is_missing_misshapen_or_not_finite_is_wrong(
    outputs: dict[str, torch.Tensor],
) -> None:
    truth = {"loss": Truth(torch.tensor([3.0, 4.0]).double(), 1e9, 1.0)}
    assert not judge(outputs, truth).right


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "op", ["pact_loss", "linear_cross_entropy", "linear_logsumexp", "selected_confidences"]
)
def test_ours_is_right_as_a_whole_and_in_rows_of_the_timed_case(op: str, dtype: str) -> None:
    case = replace(CASE, op=op, dtype=dtype, trainable_head=op == "linear_cross_entropy")
    inputs = make_inputs(case)
    checker = Checker(case, inputs)
    assert checker.case.rows <= CHECKED_ROWS < case.rows and not checker.whole
    smaller = checker.judge(outputs_of(Ours(), checker.case, checker.inputs))
    in_rows = checker.judge_sample(outputs_of(Ours(), case, inputs))
    assert in_rows is not None and in_rows.right and smaller.right
    assert 0 < smaller.error < (1e-2 if dtype == "bfloat16" else 1e-5)


def test_scores_are_means_over_rows_and_have_no_sample() -> None:
    case = replace(CASE, op="token_scores")
    inputs = make_inputs(case)
    assert Checker(case, inputs).judge_sample(outputs_of(Eager(), case, inputs)) is None


def test_a_small_case_is_compared_as_a_whole_with_its_own_inputs() -> None:
    case = replace(CASE, sequences=1)
    inputs = make_inputs(case)
    checker = Checker(case, inputs)
    assert checker.whole and checker.inputs is inputs and checker.sample is None


def test_a_sample_reaches_from_the_first_row_to_the_last() -> None:
    inputs = make_inputs(CASE)
    sample = Sample(CASE, inputs, count=3)
    assert sample.positions.tolist() == [50, 399, 799]  # 150 rows of every 200
    assert sample.picked.tolist() == [0, 299, 599]
    whole, few = oracle(CASE, inputs), oracle(sample.case, sample.inputs)
    of_whole = sample.of(whole)["gradient of hidden"]
    torch.testing.assert_close(of_whole, few["gradient of hidden"], rtol=1e-10, atol=1e-14)


def test_fewer_rows_are_compared_where_the_vocabulary_is_large() -> None:
    assert checked_rows(CASE) == 256
    assert checked_rows(replace(CASE, vocabulary=262144)) == 2**31 // (100 * 262144)
    assert checked_rows(replace(CASE, vocabulary=2**30)) == 16
