"""What holds of every op whatever its shapes, strides, dtype, masks, gate and settings.

The suite's profile draws two thousand cases and more, the same in every run; `long` draws thirty
times as many, others at each run:

    HYPOTHESIS_PROFILE=long python -m pytest tests/ops/test_properties.py        (make fuzz)

Bounds are in roundings of the dtype at the size of the logits, see `Case.scale`: eager torch's own
errors are such, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pact_kernels as pk
from tests.implementations import KERNELS
from tests.ops.case import LOSSES, OPS, Case, apart, cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
WIDE = DTYPES[:2]
ROUNDINGS = {torch.float64: 64, torch.float32: 16, torch.bfloat16: 4}
"""How many an error may have. In fp64 the amplification by a little rest of the mass is in it, see
`tolerance`."""
LEAST_KL = -(2.0**-22)
"""Nats, at temperature 1, in fp32: four roundings of the K + 1 terms, whose weights sum to 1."""
TINY_MIB = 0.004
"""A row or two and 64 tokens at once."""
TRITON = [name for name in KERNELS if name == "triton"]


def drawn(number: int) -> Callable[[Any], Any]:
    """So many cases in the suite's profile, and their multiple in another."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))


def tolerance(case: Case, key: str, roundings: float = 1.0) -> float:
    """An error of one result of a case."""
    unit = torch.finfo(case.dtype).eps / 2
    if case.dtype == torch.float64:  # a rest of the mass of 1e-6 is off by its millionth part
        unit *= 1e6 if case.over == "vocabulary" else 1.0
    return roundings * ROUNDINGS[case.dtype] * unit * case.scale(key)


def assert_near(
    case: Case, got: dict[str, Tensor], expected: dict[str, Tensor], roundings: float = 1.0
) -> None:
    """Each result within its tolerance."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        error, bound = apart(got[key], value), tolerance(case, key, roundings)
        assert error <= bound, f"{key}: {error:.1e} against {bound:.1e}"


def assert_is_the_formula(case: Case, op: str, implementation: str) -> None:
    """At most twice eager's error against float64, and a floor; shapes and dtypes are eager's."""
    got = case.outcome(op, implementation, mib=TINY_MIB)
    eager = case.outcome(op, "naive")
    exact = case.outcome(op, "naive", dtype=torch.float64)
    for key, value in exact.items():
        assert (got[key].shape, got[key].dtype) == (value.shape, eager[key].dtype), key
        ours, theirs = apart(got[key], value), apart(eager[key], value)
        bound = 2 * theirs + tolerance(case, key)
        assert ours <= bound, f"{key}: {ours:.1e} against {bound:.1e}, eager {theirs:.1e}"


@drawn(600)
@given(case=cases(DTYPES), op=st.sampled_from(OPS))
def test_values_and_gradients_are_the_formulas(case: Case, op: str) -> None:
    assert_is_the_formula(case, op, "chunked")


@pytest.mark.parametrize("implementation", TRITON)
@drawn(24)
@given(case=cases(DTYPES[1:]), op=st.sampled_from(OPS))
def test_the_kernels_values_and_gradients_are_the_formulas(
    implementation: str, case: Case, op: str
) -> None:
    assert_is_the_formula(case, op, implementation)


def assert_rows_are_by_themselves(case: Case, op: str, implementation: str, split: int) -> None:
    """Permuted, cut in two batches and in other chunks, a row's results are what they were."""
    whole = case.outcome(op, implementation)
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(case.seed))
    if case.layout == "one row, expanded":
        order = torch.arange(case.rows)
    permuted = case.outcome(op, implementation, rows=order)
    in_order = {
        key: value[order] if key in ("value", "kl", "by_hidden") else value
        for key, value in whole.items()
    }
    assert_near(case, permuted, in_order)
    low, high = (
        case.outcome(op, implementation, rows=rows)
        for rows in torch.arange(case.rows).tensor_split([split])
    )
    parts = {
        key: torch.cat((low[key], high[key]))
        if key in ("value", "kl", "by_hidden")
        else low[key].double() + high[key].double()
        for key in whole
        if key != "gate"  # a mean over each batch's rows
    }
    assert_near(case, parts, {key: whole[key] for key in parts}, roundings=2)
    assert_near(case, case.outcome(op, implementation, mib=TINY_MIB), whole)


@drawn(250)
@given(case=cases(DTYPES), op=st.sampled_from(OPS), split=st.integers(0, 9))
def test_a_row_does_not_depend_on_the_others(case: Case, op: str, split: int) -> None:
    assert_rows_are_by_themselves(case, op, "chunked", min(split, case.rows))


@pytest.mark.parametrize("implementation", TRITON)
@drawn(8)
@given(case=cases(DTYPES[1:]), op=st.sampled_from(OPS), split=st.integers(0, 9))
def test_a_row_of_the_kernels_does_not_depend_on_the_others(
    implementation: str, case: Case, op: str, split: int
) -> None:
    assert_rows_are_by_themselves(case, op, implementation, min(split, case.rows))


@drawn(300)
@given(case=cases(WIDE), op=st.sampled_from(LOSSES), items=st.sampled_from((None, 3, 40.5)))
def test_a_sum_and_a_mean_are_those_of_the_rows(case: Case, op: str, items: float | None) -> None:
    """A mean by the kept rows, or by num_items, given as a number or as a tensor."""
    case = replace(case, layout="contiguous")
    case.tensors["incoming"].fill_(1.0)
    by_row = case.outcome(op)
    kept = case.tensors["target"] != -100
    count = case.rows if op == "pact_kl" else int(kept.sum())
    total = by_row["value"].sum()
    gradients = [key for key in by_row if key.startswith("by_")]
    mean_by = max(count, 1) if items is None else items
    for reduction, divisor in (("sum", 1.0), ("mean", mean_by)):
        for num_items in (items, None if items is None else torch.tensor(items)):
            more = {"num_items": num_items} if reduction == "mean" else {}
            got = case.outcome(op, reduction=reduction, mib=TINY_MIB, **more)
            bound = 2 * max(case.rows, 1) * tolerance(case, "value") / divisor
            assert apart(got["value"], total / divisor) <= bound
            for key in gradients:
                bound = 2 * tolerance(case, key) / divisor
                assert apart(got[key], by_row[key] / divisor) <= bound, key


@drawn(250)
@given(
    case=cases(DTYPES, softcap=None, has_bias=True, z_loss=0.0),
    op=st.sampled_from([op for op in OPS if op != "selected_logits"]),
    shift=st.sampled_from((-64.0, 8.0)),
)
def test_a_shift_of_all_logits_changes_no_probability(case: Case, op: str, shift: float) -> None:
    """By a bias on all tokens; a log-sum-exp moves with it. The reference's bias is its own."""
    size = case.largest + abs(shift)
    plain, shifted = case.outcome(op), case.outcome(op, bias_shift=shift)
    if op == "linear_logsumexp":
        plain["value"] = plain["value"] + shift * case.logit_scale
    # Of the shifted logits, and of the biases, which the dtype rounds anew.
    assert_near(case, shifted, plain, roundings=4 * size / case.largest if case.rows else 1.0)


@drawn(300)
@given(case=cases(DTYPES, ignored=0.0), implementation=st.sampled_from(("chunked", "naive")))
def test_a_student_that_is_its_reference_pays_nothing(case: Case, implementation: str) -> None:
    """Over the vocabulary, and the selection with equal weights: no KL, and no gradient of it."""
    assert_no_kl(case, implementation)


@pytest.mark.parametrize("implementation", TRITON)
@drawn(8)
@given(case=cases(DTYPES[1:], ignored=0.0))
def test_the_kernels_take_nothing_of_a_student_that_is_its_reference(
    implementation: str, case: Case
) -> None:
    assert_no_kl(case, implementation)


def assert_no_kl(case: Case, implementation: str) -> None:
    t, dtype = case.tensors, case.dtype
    bias = t["bias"].to(dtype) if case.has_bias else None
    same = pk.ReferenceStates(*(t[name].to(dtype) for name in ("hidden", "hidden", "weight")), bias)
    equal = {"reference": same, "token_weights": torch.ones(case.selected)}
    got = case.outcome("pact_kl", implementation, **equal)
    rounding = max(torch.finfo(dtype).eps * (1.0 + case.largest), 1e-9)
    temperature = max(1.0, case.temperature**2)
    assert apart(got["value"], torch.zeros_like(got["value"])) <= 1e-6 * temperature + rounding**2
    for key in ("by_hidden", "by_weight", "by_bias"):
        if key in got:
            size = case.scale(key) / (1.0 + case.largest)
            assert apart(got[key], torch.zeros_like(got[key])) <= 4 * rounding * size, key


@drawn(400)
@given(
    case=cases(DTYPES, ignored=0.0),
    implementation=st.sampled_from(("chunked", "naive")),
    lead=st.sampled_from((0.0, 8.0, 16.0, 40.0)),
    near=st.booleans(),
)
def test_a_kl_is_not_negative(case: Case, implementation: str, lead: float, near: bool) -> None:
    """The K tokens far ahead of the others, so that the rest is clamped; near the reference."""
    case = replace(case, weighted=False, softcap=None, cached=False, has_bias=True)
    t, ids = case.tensors, case.tensors["token_ids"]
    for name in ("bias", "reference_bias"):
        t[name].index_add_(
            0, ids, torch.full_like(ids, lead / case.logit_scale, dtype=torch.float64)
        )
    if near:
        t["full"], t["post"], t["reference"] = t["hidden"], t["hidden"], t["weight"]
    weights = torch.ones(case.selected)
    dtype = case.wanted_dtype
    kl = case.outcome("pact_kl", implementation, dtype=dtype, token_weights=weights)["value"]
    assert kl.dtype == torch.promote_types(dtype, torch.float32)
    least = LEAST_KL * max(1.0, case.temperature**2)
    assert bool((kl >= least).all()), kl.min()  # a NaN fails, too


@drawn(250)
@given(
    case=cases(WIDE, rows=1, ignored=0.0, cached=True),
    implementation=st.sampled_from(("chunked", "naive")),
)
def test_a_gate_lies_within_its_bounds(case: Case, implementation: str) -> None:
    """c is boost times decay times a sigmoid, of a difference of counts of 1 to K."""
    gate = case.gate
    c = float(case.outcome("pact_loss", implementation)["gate"])
    if gate is None:
        assert c == 0.0
        return
    step, width = int(case.tensors["step"][0]), case.selected
    past = max(step - gate.prefix_length, 0)
    hard = float(step < gate.prefix_length)
    decay = torch.tensor(-past / gate.decay_tau).exp() if gate.decay_tau else torch.tensor(hard)
    ends = [
        torch.sigmoid(torch.tensor(gate.alpha * (sign * (1 - 1 / width) - gate.bias)))
        for sign in (-1.0, 1.0)
    ]
    low, high = (float(decay * gate.prefix_boost * end) for end in (min(ends), max(ends)))
    assert low * (1 - 1e-6) <= c <= high * (1 + 1e-6)
