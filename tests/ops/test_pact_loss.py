"""`pact_loss` against the sum of its dense parts, over its options and at its edges."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import pact_kernels as pk
from tests.ops.compare import (
    TINY_MIB,
    Call,
    assert_matches_naive,
    assert_same,
    outcome,
    relative_error,
)
from tests.ops.problem import Problem, problem
from tests.rounding import EXACT

GATES = {
    "gate": pk.GateConfig(),
    "hard cut": pk.GateConfig(decay_tau=0.0, prefix_length=3),
    "no prefix": pk.GateConfig(prefix_length=0, alpha=-1.5, bias=0.2, prefix_boost=0.7),
    "counts at another temperature": pk.GateConfig(top_p=0.6, temperature=1.7, decay_tau=20.0),
    "no gate": None,
}


def loss_call(p: Problem, reference: Any, **options: Any) -> Call:
    def call(hidden, weight, bias):
        return pk.pact_loss(
            hidden,
            weight,
            p.target.reshape(hidden.shape[:-1]),
            p.token_ids,
            p.token_weights,
            options.get("step", p.step),
            reference,
            bias=bias,
            **{name: value for name, value in options.items() if name != "step"},
        )

    return call


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_gates_and_references_match_naive(over: str, name: str, source: str, trained: bool) -> None:
    p = problem()
    reference = p.states if source == "states" else p.logits()
    call = loss_call(p, reference, over=over, gate=GATES[name], kl_weight=0.7)
    got = assert_matches_naive(call, p.hidden, p.weight, trained=trained)
    assert int(got["num_rows"]) == p.step.numel()
    assert (float(got["mean_gate"]) == 0.0) == (name == "no gate")


OPTIONS: dict[str, dict[str, Any]] = {
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "num_items": {"num_items": 96},
    "num_items tensor": {"num_items": torch.tensor(96)},
    "num_items tensor of floats": {"num_items": torch.tensor(96.0, dtype=torch.float64)},
    "head": {"softcap": 5.0, "logit_scale": 0.7},
    "head, by row": {"softcap": 5.0, "logit_scale": 0.7, "reduction": "none"},
    "cross-entropy": {"label_smoothing": 0.1, "z_loss": 0.01},
    "cross-entropy, by row": {"label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    "no weight on the KL": {"kl_weight": 0.0},
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "row_weight"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_options_match_naive(over: str, name: str, weighted: bool) -> None:
    p = problem()
    options = dict(OPTIONS[name], row_weight=p.row_weight if weighted else None)
    head = {key: options[key] for key in ("softcap", "logit_scale") if key in options}
    reference = p.states if weighted else p.logits(bias=p.bias, **head)
    assert_matches_naive(loss_call(p, reference, over=over, **options), p.hidden, p.weight, p.bias)


@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_temperature_of_the_selection(temperature: float) -> None:
    p = problem()
    call = loss_call(p, p.states, temperature=temperature)
    assert_matches_naive(call, p.hidden, p.weight)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_it_is_cross_entropy_plus_weighted_kl(over: str) -> None:
    p = problem()
    kept = p.target != -100
    out = loss_call(p, p.states, over=over, kl_weight=0.3, label_smoothing=0.1)(
        p.hidden, p.weight, p.bias
    )
    cross_entropy = pk.linear_cross_entropy(
        p.hidden, p.weight, p.target, bias=p.bias, label_smoothing=0.1
    )
    kl = pk.pact_kl(
        p.hidden[kept],
        p.weight,
        p.token_ids,
        p.token_weights,
        p.step,
        p.states,
        over=over,
        bias=p.bias,
    )
    torch.testing.assert_close(out.cross_entropy, cross_entropy, rtol=EXACT, atol=0)
    torch.testing.assert_close(out.kl, kl, rtol=EXACT, atol=0)
    torch.testing.assert_close(out.loss, cross_entropy + 0.3 * kl, rtol=EXACT, atol=0)


@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_row_arguments_may_have_an_entry_per_position(over: str, source: str) -> None:
    """Entries of ignored positions are poisoned: none of them may be read."""
    p = problem(rows=36)
    kept = p.target != -100

    def spread(rows: torch.Tensor, shape: tuple[int, ...] = (4, 9)) -> torch.Tensor:
        poison = torch.nan if rows.is_floating_point() else 10**6
        full = torch.full((36, *rows.shape[1:]), poison, dtype=rows.dtype)
        full[kept] = rows
        return full.reshape(*shape, *rows.shape[1:])

    full, post, weight, bias = p.states
    if source == "states":
        each = pk.ReferenceStates(spread(full), spread(post), weight, bias)
        reference: Any = p.states
    else:
        reference = p.logits()
        each = pk.ReferenceLogits(*(spread(tensor) for tensor in reference))
    options = {"over": over, "reduction": "none"}
    by_row = outcome(
        loss_call(p, reference, row_weight=p.row_weight, **options),
        p.hidden.reshape(4, 9, -1),
        p.weight,
    )
    by_position = outcome(
        loss_call(p, each, step=spread(p.step), row_weight=spread(p.row_weight), **options),
        p.hidden.reshape(4, 9, -1),
        p.weight,
    )
    assert by_row["loss"].shape == (4, 9)
    # The same rows, and no others; a gathered copy may lie at another alignment, where the product
    # of a few rows is summed in another order.
    for name, expected in by_row.items():
        torch.testing.assert_close(by_position[name], expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("implementation", ["naive", "chunked"])
def test_only_the_loss_carries_a_gradient(implementation: str) -> None:
    p = problem()
    full, post, weight, _ = p.states
    leaves = [t.clone().requires_grad_() for t in (full, post, weight, p.bias)]
    token_weights, row_weight = (
        t.clone().requires_grad_() for t in (p.token_weights, p.row_weight)
    )
    hidden = p.hidden.clone().requires_grad_()
    with pk.implementation(implementation):
        out = pk.pact_loss(
            hidden,
            p.weight,
            p.target,
            p.token_ids,
            token_weights,
            p.step,
            pk.ReferenceStates(*leaves),
            over="vocabulary",
            row_weight=row_weight,
        )
    assert [value.requires_grad for value in out] == [True, False, False, False, False]
    out.loss.backward()
    assert hidden.grad is not None
    assert all(leaf.grad is None for leaf in (*leaves, row_weight, token_weights))


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
@pytest.mark.parametrize("rows", [0, 6])
def test_no_counted_row_is_zero_with_zero_gradients(rows: int, over: str) -> None:
    p = problem(rows=6, ignored=1.0)  # every position ignored
    assert p.step.numel() == 0
    p = dataclasses.replace(p, hidden=p.hidden[:rows], target=p.target[:rows])
    got = assert_matches_naive(loss_call(p, p.states, over=over), p.hidden, p.weight, p.bias)
    assert all(not value.any() for value in got.values())


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
@pytest.mark.parametrize(
    "rows, hidden, vocabulary, selected",
    [
        (9, 5, 17, 1),  # K = 1: the selection's KL is 0, the vocabulary's is not
        (7, 3, 13, 13),  # K = V: nothing is left for the rest
        (3, 8, 200, 150),  # more tokens than rows or states
        (1, 1, 2, 1),  # nothing to vectorise
        (70, 33, 129, 17),  # one past a power of two in every size, more rows than a block
    ],
)
def test_odd_shapes(rows: int, hidden: int, vocabulary: int, selected: int, over: str) -> None:
    p = problem(rows, hidden, vocabulary, selected, ignored=0.2)
    p.token_weights[0] = 0.5  # one at least is positive
    for options in ({}, {"softcap": 4.0}):
        call = loss_call(p, p.states, over=over, gate=pk.GateConfig(top_p=0.7), **options)
        got = assert_matches_naive(call, p.hidden, p.weight, p.bias)
        if selected == 1 and over == "selection":
            assert float(got["kl"]) == 0.0


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_several_chunks_of_several_blocks(over: str) -> None:
    """A softcap or 16 bits cut a chunk into blocks; the tiny workspace leaves them one row."""
    p = problem(rows=70)
    call = loss_call(p, p.states, over=over, softcap=5.0, reduction="none")
    small, large = (outcome(call, p.hidden, p.weight, p.bias, mib=mib) for mib in (0.05, 8.0))
    assert_same(small, large, 1e-12)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_extreme_logits(over: str) -> None:
    """Logits of about +-1e4, where every softmax is one-hot, in fp32 against fp64."""
    p = problem(seed=1)
    p.token_weights = p.token_weights.abs()  # no row's target is all underflow: see the next test
    full, post, weight, _ = p.states
    for name, factor in (("large", 3e3), ("all equal", 0.0)):
        scaled = p.hidden * factor
        states = pk.ReferenceStates(full * factor, post * factor, weight)
        narrow = pk.ReferenceStates(*(t.float() for t in states[:3]))
        got = outcome(
            loss_call(p, narrow, over=over), scaled.float(), p.weight.float(), p.bias.float()
        )
        exact = pk.ReferenceStates(*(t.double() for t in narrow[:3]))
        expected = outcome(
            loss_call(p, exact, over=over),
            scaled.float().double(),
            p.weight.float().double(),
            p.bias.float().double(),
            implementation="naive",
        )
        for key in ("loss", "by_hidden", "by_weight"):
            assert torch.isfinite(got[key]).all(), (name, key)
            assert relative_error(got[key], expected[key]) < 1e-5, (name, key)


def test_a_target_whose_weights_leave_only_underflow() -> None:
    """softmax(m / T) is one-hot on a token without weight: its formula gives 0 / 0."""
    p = problem(selected=3, ignored=0.0)
    p.token_weights = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    n = p.step.numel()
    full = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64).expand(n, 3)
    call = loss_call(p, pk.ReferenceLogits(full), gate=None)
    got = outcome(call, p.hidden.float(), p.weight.float())
    # All of the target is on the last token, so the KL is 4 times its negative log-confidence.
    student = pk.selected_logits(p.hidden, p.weight, p.token_ids)
    expected = -4 * (student / 2).log_softmax(-1)[:, -1].mean()
    assert abs(float(got["kl"] / expected) - 1) < 1e-5


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_unselected_tokens_forbidden_by_an_infinite_bias(over: str) -> None:
    p = problem()
    allowed = torch.zeros(301, dtype=torch.bool)
    allowed[p.token_ids] = True
    allowed[p.target[p.target != -100]] = True
    bias = p.bias.where(allowed, -torch.inf)
    got = assert_matches_naive(loss_call(p, p.states, over=over), p.hidden, p.weight, bias)
    assert torch.isfinite(got["loss"])
    assert not got["by_weight"][~allowed].any()


def test_ignored_rows_are_never_read() -> None:
    p = problem()
    hidden = p.hidden.clone()
    hidden[p.target == -100] = torch.nan
    call = loss_call(p, p.states, over="vocabulary", softcap=5.0)
    got, clean = (outcome(call, h, p.weight, p.bias) for h in (hidden, p.hidden))
    assert all(torch.equal(got[name], clean[name]) for name in clean)


def test_inputs_may_be_strided_and_stay_as_they_are() -> None:
    p = problem(rows=36)

    def strided(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    full, post, weight, _ = p.states
    given = {
        "hidden": strided(p.hidden),
        "weight": strided(p.weight),
        "target": strided(p.target),
        "token_ids": strided(p.token_ids),
        "token_weights": strided(p.token_weights),
        "step": strided(p.step),
        "row_weight": strided(p.row_weight),
        "bias": strided(p.bias),
    }
    states = pk.ReferenceStates(*(strided(t) for t in (full, post, weight)))
    everything = [*given.values(), *states[:3]]
    assert not any(t.is_contiguous() for t in everything)
    before = [t.clone() for t in everything]
    for over in ("selection", "vocabulary"):
        got, expected = (
            outcome(
                lambda hidden, weight, bias, over=over: pk.pact_loss(
                    **{**given, "hidden": hidden, "weight": weight, "bias": bias},
                    reference=states,
                    over=over,
                    softcap=5.0,
                ),
                given["hidden"],
                given["weight"],
                given["bias"],
                implementation=implementation,
            )
            for implementation in ("chunked", "naive")
        )
        assert_same(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, everything, strict=True))


def test_repeated_calls_give_the_same_bits() -> None:
    p = problem()
    call = loss_call(p, p.states, over="vocabulary", softcap=5.0)
    first, second = (
        outcome(call, p.hidden.float(), p.weight.float(), p.bias.float()) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_row_does_not_depend_on_the_others() -> None:
    p = problem(ignored=0.0)
    call = loss_call(p, p.logits(), reduction="none")
    whole = call(p.hidden, p.weight, None)
    for row in (0, 17, 36):
        alone = pk.pact_loss(
            p.hidden[row : row + 1],
            p.weight,
            p.target[row : row + 1],
            p.token_ids,
            p.token_weights,
            p.step[row : row + 1],
            pk.ReferenceLogits(*(t[row : row + 1] for t in p.logits())),
            reduction="none",
        )
        torch.testing.assert_close(alone.loss[0], whole.loss[row], rtol=EXACT, atol=0)


def test_the_cut_into_micro_batches_does_not_change_the_step() -> None:
    """num_items is the rows of the whole step: losses and gradients of its parts add up."""
    p = problem()
    kept = p.target != -100
    rows = int(kept.sum())
    whole = outcome(loss_call(p, p.states), p.hidden, p.weight)
    weight = p.weight.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    full, post, head, _ = p.states
    taken = 0
    for part in torch.arange(37).split([11, 20, 6]):  # unequal: a mean of means would differ
        count = int(kept[part].sum())
        mine = slice(taken, taken + count)
        taken += count
        with pk.workspace(TINY_MIB):
            total += pk.pact_loss(
                p.hidden[part],
                weight,
                p.target[part],
                p.token_ids,
                p.token_weights,
                p.step[mine],
                pk.ReferenceStates(full[mine], post[mine], head),
                num_items=rows,
            ).loss
    total.backward()
    torch.testing.assert_close(total.detach(), whole["loss"], rtol=EXACT, atol=0)
    torch.testing.assert_close(0.37 * 0.5 * weight.grad, whole["by_weight"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_references_may_be_of_another_dtype(over: str) -> None:
    """A cache in 16 bits, a reference in fp32 beside a fp64 student: both mean their own values."""
    p = problem()
    cached = pk.ReferenceLogits(*(t.bfloat16() for t in p.logits()))
    full, post, weight, _ = p.states
    states = pk.ReferenceStates(full.float(), post.bfloat16(), weight.float())
    for reference in (cached, states):
        got, expected = (
            outcome(
                loss_call(p, reference, over=over),
                p.hidden,
                p.weight,
                implementation=implementation,
            )
            for implementation in ("chunked", "naive")
        )
        assert_same(got, expected, 1e-5)  # the reference's own logits are in fp32


def test_the_reference_may_have_other_sizes_and_its_own_bias() -> None:
    p = problem()
    generator = torch.Generator().manual_seed(3)
    n = p.step.numel()
    states = pk.ReferenceStates(  # a smaller model: 7 wide, 290 tokens, a bias of its own
        *(
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((n, 7), (n, 7), (290, 7), (290,))
        )
    )
    p.token_ids = torch.randperm(290, generator=generator)[:11]
    for over in ("selection", "vocabulary"):
        assert_matches_naive(loss_call(p, states, over=over), p.hidden, p.weight, p.bias)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_steps_before_the_prefix_and_negative_ones(dtype: torch.dtype) -> None:
    p = problem()
    step = (torch.arange(p.step.numel()) - 5).to(dtype)
    for gate in (pk.GateConfig(prefix_length=4), pk.GateConfig(prefix_length=4, decay_tau=0.0)):
        call = loss_call(p, p.states, step=step, gate=gate)
        assert_matches_naive(call, p.hidden, p.weight)
