"""Every refusal: what is wrong, what was received, and what to do about it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

import pact_kernels as pk
from tests.ops.problem import problem

P = problem(rows=8, hidden=5, vocabulary=17, selected=3, ignored=0.0)
FULL, POST, HEAD, _ = P.states
LOGITS = P.logits()
META = torch.device("meta")  # another device, on any machine

LOSS: dict[str, Any] = {
    "hidden": P.hidden,
    "weight": P.weight,
    "target": P.target,
    "token_ids": P.token_ids,
    "token_weights": torch.ones(3),
    "step": P.step,
    "reference": LOGITS,
}
SCORES: dict[str, Any] = {
    "aligned_hidden": P.hidden,
    "aligned_weight": P.weight,
    "base_hidden": P.hidden,
    "base_weight": P.weight,
    "sample": P.step,
}

LOSS_CASES: list[tuple[str, dict[str, Any]]] = [
    # the head
    (r"hidden must be \(N, D\) or \(B, L, D\), got shape \(5,\)", {"hidden": P.hidden[0]}),
    (r"weight must be \(V, D\) with the D of hidden.*nn.Linear", {"weight": P.weight.T}),
    (r"weight must be \(V, D\)", {"weight": P.weight[0]}),
    (
        r"share one floating dtype, got torch.float32 and torch.float64",
        {"hidden": P.hidden.float()},
    ),
    ("share one floating dtype", {"hidden": P.hidden.long(), "weight": P.weight.long()}),
    ("hidden and weight must be on one device, got cpu and meta", {"weight": P.weight.to(META)}),
    ("hidden and bias must be on one device", {"bias": P.bias.to(META)}),
    (r"bias must be \(V,\) = \(17,\), got \(5,\)", {"bias": P.bias[:5]}),
    ("softcap must be positive and finite, or None, got 0.0", {"softcap": 0.0}),
    ("softcap must be positive and finite, or None, got -3", {"softcap": -3}),
    ("softcap must be positive and finite, or None, got inf", {"softcap": math.inf}),
    ("logit_scale must not be 0", {"logit_scale": 0.0}),
    ("logit_scale must be finite, got nan", {"logit_scale": math.nan}),
    # the cross-entropy
    (r"label_smoothing must be in \[0, 1\), got 1.0", {"label_smoothing": 1.0}),
    (r"label_smoothing must be in \[0, 1\), got -0.1", {"label_smoothing": -0.1}),
    ("z_loss must be at least 0, and finite, got -1", {"z_loss": -1}),
    ("z_loss must be at least 0, and finite, got inf", {"z_loss": math.inf}),
    (r"target must have hidden's shape .*\(8,\), got \(7,\)", {"target": P.target[:7]}),
    ("target must be int64 or int32, got torch.float64", {"target": P.target.double()}),
    ("hidden and target must be on one device", {"target": P.target.to(META)}),
    (r"a target must lie in \[0, 17\) or equal .*got 17 at position 2", {"target": (2, 17)}),
    (r"a target must lie in \[0, 17\) or equal .*got -1 at position 0", {"target": (0, -1)}),
    # the reduction
    (r"reduction must be one of \('mean', 'sum', 'none'\), got 'max'", {"reduction": "max"}),
    (
        "num_items is the denominator of reduction='mean', got reduction='sum': leave it out",
        {"reduction": "sum", "num_items": 3},
    ),
    ("num_items must be positive and finite, got 0", {"num_items": 0}),
    ("num_items must be positive and finite, got inf", {"num_items": math.inf}),
    ("kl_weight must be finite, got nan", {"kl_weight": math.nan}),
    ("temperature must be positive and finite, got inf", {"temperature": math.inf}),
    (r"num_items must be a number or a 0-d tensor, got shape \(1,\)", {"num_items": torch.ones(1)}),
    ("num_items must be at least 0 .* and finite, got inf", {"num_items": torch.tensor(math.inf)}),
    ("num_items must be at least 0 .* and finite, got nan", {"num_items": torch.tensor(math.nan)}),
    ("num_items must be at least 0 .* and finite, got -3", {"num_items": torch.tensor(-3)}),
    # numbers that fp32 does not hold
    ("softcap must be .*got 1e-40 .*in fp32", {"softcap": 1e-40}),
    ("softcap must be .*got 1e\\+39 .*in fp32", {"softcap": 1e39}),
    ("logit_scale must be .*got -1e\\+39 .*in fp32", {"logit_scale": -1e39}),
    ("logit_scale must be .*got 1e-50 .*in fp32", {"logit_scale": 1e-50}),
    ("temperature must be .*got 1e-300 .*in fp32", {"temperature": 1e-300}),
    ("temperature must be .*got nan", {"temperature": math.nan}),
    ("num_items must be .*got 1e-39 .*in fp32", {"num_items": 1e-39}),
    ("num_items must be .*got nan", {"num_items": math.nan}),
    ("z_loss must be .*got 1e\\+39", {"z_loss": 1e39}),
    ("z_loss must be .*got nan", {"z_loss": math.nan}),
    ("kl_weight must be .*got -1e\\+39", {"kl_weight": -1e39}),
    ("softcap must be .*got nan", {"softcap": math.nan}),
    ("label_smoothing must be .*got nan", {"label_smoothing": math.nan}),
    # the tokens
    (r"token_ids must be \(K,\) int64, got \(3,\) torch.int32", {"token_ids": P.token_ids.int()}),
    (
        "K must be from 1 to V=17 selected tokens, got 0",
        {"token_ids": P.token_ids[:0], "token_weights": torch.ones(0)},
    ),
    (
        "K must be from 1 to V=17 selected tokens, got 18",
        {"token_ids": torch.arange(18), "token_weights": torch.ones(18)},
    ),
    (r"token_weights must be \(K,\) like token_ids", {"token_weights": torch.ones(2)}),
    ("hidden and token_ids must be on one device", {"token_ids": P.token_ids.to(META)}),
    ("hidden and token_weights must be on one", {"token_weights": torch.ones(3, device=META)}),
    (r"token_ids must lie in \[0, 17\), got 3 to 17", {"token_ids": torch.tensor([3, 5, 17])}),
    (r"token_ids must lie in \[0, 17\), got -1 to 5", {"token_ids": torch.tensor([-1, 3, 5])}),
    ("token_ids must be distinct", {"token_ids": torch.tensor([3, 5, 3])}),
    (
        "token_weights must have a positive entry",
        {"token_weights": torch.tensor([-1.0, 0.0, -0.0])},
    ),
    (
        "token_weights must be finite, got nan at position 1",
        {"token_weights": torch.tensor([1.0, math.nan, 1.0])},
    ),
    (
        "token_weights must be finite, got inf at position 0",
        {"token_weights": torch.tensor([math.inf, 1.0, 1.0])},
    ),
    # the KL
    ("over must be 'selection' or 'vocabulary', got 'all'", {"over": "all"}),
    (
        "at temperature 1, got temperature=2.0: leave it out",
        {"over": "vocabulary", "temperature": 2.0},
    ),
    ("temperature must be positive and finite, got 0", {"temperature": 0}),
    ("step must be int64 or int32, got torch.float32", {"step": P.step.float()}),
    ("step must be int64 or int32, got torch.uint8", {"step": P.step.to(torch.uint8)}),
    ("hidden and step must be on one device", {"step": P.step.to(META)}),
    ("row_weight must have one entry per step, 8, got", {"row_weight": torch.ones(7)}),
    (
        "row_weight must be finite, got nan at position 7",
        {"row_weight": torch.ones(8).index_fill(0, torch.tensor(7), math.nan)},
    ),
    ("hidden and row_weight must be on one device", {"row_weight": torch.ones(8, device=META)}),
    # the reference
    ("must be ReferenceLogits or ReferenceStates, got Tensor", {"reference": LOGITS.full}),
    (
        r"reference.full must be \(8, 3\), one row per step",
        {"reference": LOGITS._replace(full=FULL)},
    ),
    (r"reference.post must be \(8, 3\)", {"reference": LOGITS._replace(post=LOGITS.full[:7])}),
    ("reference.post is needed .*or pass gate=None", {"reference": LOGITS._replace(post=None)}),
    (
        "reference.full_lse is needed with these options, got None: give it$",
        {"reference": LOGITS._replace(full_lse=None), "over": "vocabulary"},
    ),
    (
        "reference.post_lse is needed .*or pass gate=None",
        {"reference": LOGITS._replace(post_lse=None), "over": "vocabulary"},
    ),
    (
        "reference.post_lse must have one entry per step, 8",
        {"reference": LOGITS._replace(post_lse=LOGITS.full), "over": "vocabulary"},
    ),
    ("reference.full must be on one device", {"reference": LOGITS._replace(full=FULL.to(META))}),
    (r"reference.weight must be \(V, D\)", {"reference": P.states._replace(weight=HEAD[0])}),
    (
        r"reference.full_hidden must be \(8, 5\)",
        {"reference": P.states._replace(full_hidden=POST[:3])},
    ),
    (r"reference.post_hidden must be \(8, 5\)", {"reference": P.states._replace(post_hidden=HEAD)}),
    ("reference.post_hidden is needed", {"reference": P.states._replace(post_hidden=None)}),
    (r"reference.bias must be \(V,\) = \(17,\)", {"reference": P.states._replace(bias=FULL)}),
    (
        r"token_ids must lie in \[0, 16\), got 3 to 16",  # the reference's vocabulary is smaller
        {"reference": P.states._replace(weight=HEAD[:16]), "token_ids": torch.tensor([3, 5, 16])},
    ),
]


@pytest.mark.parametrize("message, given", LOSS_CASES, ids=[case[0] for case in LOSS_CASES])
def test_pact_loss_refuses(message: str, given: dict[str, Any]) -> None:
    if isinstance(given.get("target"), tuple):
        at, value = given["target"]
        given = {**given, "target": P.target.index_fill(0, torch.tensor(at), value)}
    with pytest.raises(ValueError, match=message):
        pk.pact_loss(**{**LOSS, **given})


def test_pact_loss_refuses_row_tensors_of_neither_length() -> None:
    target = P.target.index_fill(0, torch.tensor([1, 4]), -100)  # 6 rows in 8 positions
    with pytest.raises(ValueError, match="one entry per row, 6 once .* per position, 8.*, got 7"):
        pk.pact_loss(
            **{
                **LOSS,
                "target": target,
                "step": P.step[:7],
                "reference": pk.ReferenceLogits(LOGITS.full[:7], LOGITS.post[:7]),
            }
        )


KL = {name: value for name, value in LOSS.items() if name != "target"}
OTHERS = {
    "linear_cross_entropy": (
        pk.linear_cross_entropy,
        {name: LOSS[name] for name in ("hidden", "weight", "target")},
    ),
    "linear_logsumexp": (pk.linear_logsumexp, {"hidden": P.hidden, "weight": P.weight}),
    "selected_logits": (
        pk.selected_logits,
        {name: LOSS[name] for name in ("hidden", "weight", "token_ids")},
    ),
    "selected_confidences": (
        pk.selected_confidences,
        {name: LOSS[name] for name in ("hidden", "weight", "token_ids")},
    ),
    "pact_kl": (pk.pact_kl, KL),
}
OTHER_CASES = [
    *((name, "hidden must be", {"hidden": P.hidden[0]}) for name in OTHERS),
    *((name, "logit_scale must not be 0", {"logit_scale": 0}) for name in OTHERS),
    *(
        (name, "must lie in", {"token_ids": torch.tensor([3, 5, 17])})
        for name in ("selected_logits", "selected_confidences", "pact_kl")
    ),
    ("linear_cross_entropy", "target must have", {"target": P.target[:7]}),
    ("linear_cross_entropy", "reduction must be", {"reduction": "max"}),
    ("selected_confidences", "over must be 'selection' or 'vocabulary', got 1", {"over": 1}),
    ("selected_confidences", "temperature must be positive and finite, got 0", {"temperature": 0}),
    ("pact_kl", "reduction must be", {"reduction": "max"}),
    ("pact_kl", "temperature must be positive and finite, got -2", {"temperature": -2}),
    ("pact_kl", "step must have one entry per row of hidden, 7, got 8", {"hidden": P.hidden[:7]}),
]


@pytest.mark.parametrize("name, message, given", OTHER_CASES)
def test_the_other_ops_refuse(name: str, message: str, given: dict[str, Any]) -> None:
    op, arguments = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        op(**{**arguments, **given})
    with pk.implementation("naive"), pytest.raises(ValueError, match=message):
        op(**{**arguments, **given})


SCORE_CASES: list[tuple[str, dict[str, Any]]] = [
    (r"aligned_hidden must be \(N, D\)", {"aligned_hidden": P.hidden[0]}),
    (r"with the D of base_hidden", {"base_weight": P.weight[:, :4]}),
    ("must have the same rows", {"base_hidden": P.hidden[:7]}),
    ("must have the same rows", {"sample": P.step[:7]}),
    ("both heads must have one vocabulary, got 17 and 16", {"base_weight": P.weight[:16]}),
    ("sample must be int64 or int32, got torch.bool", {"sample": P.step > 3}),
    ("aligned_hidden and sample must be on one device", {"sample": P.step.to(META)}),
    (
        "at least one row, got none",
        {"aligned_hidden": P.hidden[:0], "base_hidden": P.hidden[:0], "sample": P.step[:0]},
    ),
    (r"mode must be one of \('p_diff', 'pref_logratio'\), got 'ratio'", {"mode": "ratio"}),
    ("temperature must be positive and finite, got 0", {"temperature": 0}),
    ("softcap must be positive", {"softcap": -1.0}),
    (r"bias must be \(V,\)", {"base_bias": P.bias[:3]}),
]


@pytest.mark.parametrize("message, given", SCORE_CASES, ids=[case[0] for case in SCORE_CASES])
def test_token_scores_refuses(message: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        pk.token_scores(**{**SCORES, **given})


@pytest.mark.parametrize(
    "field, value, need",
    [
        ("top_p", 0.0, r"in \(0, 1\]"),
        ("top_p", 1.1, r"in \(0, 1\]"),
        ("top_p", float("nan"), r"in \(0, 1\]"),
        ("temperature", 0.0, "positive and finite"),
        ("temperature", math.inf, "positive and finite"),
        ("alpha", math.nan, "finite"),
        ("bias", -math.inf, "finite"),
        ("prefix_boost", math.inf, "at least 0, and finite"),
        ("prefix_length", -1, "a whole number, at least 0"),
        ("prefix_length", 2.5, "a whole number, at least 0"),
        ("decay_tau", -1.0, "at least 0"),
        ("prefix_boost", -0.5, "at least 0"),
        ("temperature", 1e-40, "positive and finite"),  # 0 in fp32 on a GPU
        ("decay_tau", math.nan, "at least 0"),
        ("decay_tau", 1e-40, "at least 0"),
        ("alpha", 1e39, "finite"),
        ("bias", math.nan, "finite"),
        ("prefix_boost", math.nan, "at least 0, and finite"),
    ],
)
def test_a_gate_refuses(field: str, value: float, need: str) -> None:
    with pytest.raises(
        ValueError, match=f"gate {field} must be {need}.*got {re.escape(str(value))}"
    ):
        pk.GateConfig(**{field: value})


def test_what_every_refusal_starts_from_is_accepted() -> None:
    assert torch.isfinite(pk.pact_loss(**LOSS).loss)
    assert torch.isfinite(pk.token_scores(**SCORES)[0]).all()
    for op, arguments in OTHERS.values():
        assert torch.isfinite(op(**arguments)).all()
    without = dict(LOSS, reference=LOGITS._replace(post=None), gate=None)
    assert float(pk.pact_loss(**without).mean_gate) == 0.0
    # Weights without a positive entry are no matter over the vocabulary, where they are not used.
    unweighted = dict(LOSS, token_weights=-torch.ones(3), over="vocabulary")
    assert torch.isfinite(pk.pact_loss(**unweighted).loss)


class Sharded(torch.Tensor):
    """What marks a DTensor: it can be gathered."""

    def full_tensor(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_sharded_head_is_refused_with_how_to_gather_it() -> None:
    with pytest.raises(ValueError, match=r"must be whole, got Sharded: .*full_tensor\(grad_"):
        pk.linear_logsumexp(P.hidden, P.weight.as_subclass(Sharded))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": "selection"}, "matched over the vocabulary, got over='selection'"),
        ({"token_ids": torch.zeros(3, 2, dtype=torch.int64)}, "one row per step, 4, got"),
        ({"token_ids": torch.tensor([[1, 1]] * 4)}, "token_ids must be distinct"),
        ({"token_ids": torch.tensor([[1, 9]] * 4)}, r"must lie in \[0, 9\), got 1 to 9"),
        ({"token_ids": torch.tensor([1, 2])}, "token_weights must be .K,., got None"),
        (
            {"reference": pk.ReferenceStates(torch.zeros(4, 3), None, torch.zeros(9, 3))},
            "need the reference's stored logits, got states",
        ),
    ],
)
def test_a_set_of_tokens_for_each_row(changes: dict[str, object], said: str) -> None:
    given = {
        "token_ids": torch.tensor([[1, 2]] * 4),
        "reference": pk.ReferenceLogits(torch.zeros(4, 2), None, torch.zeros(4)),
        "over": "vocabulary",
        **changes,
    }
    tokens, reference = given.pop("token_ids"), given.pop("reference")
    step = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=said):
        pk.pact_kl(
            torch.zeros(4, 3), torch.zeros(9, 3), tokens, None, step, reference, gate=None, **given
        )
