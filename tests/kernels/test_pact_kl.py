"""The fused KL against the dense formula in float64, from states or logits, at the edges of tiles.

Errors follow the rule of `precision`; rows whose top-p counts lie near a jump are never drawn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pact_kernels as pk
from pact_kernels.kernels._kernels.pact_kl import fits_registers
from pact_kernels.kernels.selection_kl import selection_kl
from pact_kernels.naive.pact_kl import pact_kl_rows
from tests.kernels.kl_case import case, recorded, rows_of, selection
from tests.kernels.rounding import round_to_nearest
from tests.ops.compare import assert_same


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    round_to_nearest(monkeypatch)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])


@by_dtype
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("gate", [pk.GateConfig(), None], ids=["gate", "no gate"])
def test_errors(gate: pk.GateConfig | None, source: str, dtype: torch.dtype) -> None:
    """For each row, with a trained head; cached logits have the same dtype, 16 bits among them."""
    got = case(dtype).check(source=source, gate=gate, weighted=True, reduction="none")
    assert all(value.any() for value in got.values())


GATES = {
    "hard cut": pk.GateConfig(decay_tau=0.0, prefix_length=4),
    "no prefix": pk.GateConfig(prefix_length=0, alpha=-1.5, bias=0.2, prefix_boost=0.7),
    "counts at another temperature": pk.GateConfig(top_p=0.6, temperature=1.7, decay_tau=20.0),
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    case(gate=GATES[name]).check(gate=GATES[name])


SIZES: dict[str, dict[str, int]] = {
    "one token": {"selected": 1},
    "the least tile of tokens": {"selected": 16},
    "a tile of tokens and one more": {"selected": 17},
    "a full tile of tokens": {"selected": 64},
    "128 tokens, eight warps": {"selected": 100, "rows": 9},
    "256 tokens, 32 rows": {"selected": 200, "rows": 33},
    "no row": {"rows": 0},
    "one row": {"rows": 1},
    "a tile of rows": {"rows": 64},
    "a tile of rows and one more": {"rows": 65},
    "odd widths, no descriptors": {"width": 19, "reference_width": 5},
    "one column": {"width": 1, "reference_width": 1},
    "more than three steps, a ragged one": {"width": 200, "reference_width": 136},
    "whole steps": {"width": 128, "reference_width": 192},
    "odd against even": {"width": 67, "reference_width": 64},
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    case(**SIZES[name]).check()


@pytest.mark.parametrize("selected", [1, 17])
def test_sizes_in_fp32(selected: int) -> None:
    """Steps of 32 columns: 72 is two and a ragged one. The least tile of tokens has two warps."""
    case(torch.float32, selected=selected).check()


TOO_MANY = {torch.bfloat16: 300, torch.float16: 300, torch.float32: 130}
"""Tokens past the largest configuration's 256, or 128 in fp32. With few rows: they are slow."""


@by_dtype
def test_more_tokens_than_fit_in_registers(dtype: torch.dtype) -> None:
    """Logits first, then the KL of logits, then the product of its gradient."""
    c = case(dtype, rows=9, width=24, selected=TOO_MANY[dtype])
    assert not fits_registers(c.weight[c.token_ids].to(dtype))
    frozen = c.check(trained=False, source="logits", weighted=True)
    assert frozen.keys() == {"value", "by_hidden"}
    c.check(trained=True)


HEADS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": -0.7},
    "both": {"softcap": 4.0, "logit_scale": 1.3},
}


@by_dtype
@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str, dtype: torch.dtype) -> None:
    """The bias is there in any case; the reference's own is another."""
    case(dtype, **HEADS[name]).check(weighted=True)


def test_a_head_capped_between_its_passes() -> None:
    """More tokens than fit: logits and slope come from different kernels."""
    case(rows=9, width=24, selected=300, softcap=4.0, logit_scale=1.3).check()


@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_temperatures(temperature: float) -> None:
    case(torch.float32).check(temperature=temperature)


def test_the_gradient_of_a_plain_sum() -> None:
    """Its row_grad is one number, expanded: a stride of 0."""
    c = case()
    for trained in (False, True):
        expanded = selection(c, trained=trained, row_grad=torch.ones(()).expand(18))
        assert_same(expanded._asdict(), selection(c, trained=trained)._asdict())


def test_row_grad_and_row_weight_scale_rows() -> None:
    c = case(torch.float32)
    whole, factor = selection(c, trained=True), torch.linspace(-1.0, 2.0, 18)
    scaled = selection(c, trained=True, row_grad=factor, row_weight=c.row_weight)
    torch.testing.assert_close(scaled.kl, whole.kl * c.row_weight)
    both = (factor * c.row_weight)[:, None]
    torch.testing.assert_close(scaled.grad_hidden, whole.grad_hidden * both, rtol=1e-5, atol=1e-7)
    assert torch.equal(scaled.gate, whole.gate)


def test_the_gate_of_every_row() -> None:
    c = case(torch.float32)
    out = selection(c, trained=False)
    args, kl = rows_of(c, torch.float64)
    _, expected = pact_kl_rows(
        c.hidden,
        c.weight,
        c.token_ids,
        c.token_weights,
        c.step,
        c.states,
        gate=kl.gate,
        temperature=2.0,
        over="selection",
        bias=c.bias,
    )
    torch.testing.assert_close(out.gate, expected.float(), rtol=2e-6, atol=1e-7)
    assert not selection(c, trained=False, gate=None).gate.any()


def test_a_frozen_head_has_no_gradient_and_no_buffer_for_one() -> None:
    c = case()
    out = selection(c, trained=False)
    assert out.grad_weight.numel() == out.grad_bias.numel() == 0
    (frozen,) = recorded(c, trained=False)
    assert frozen.arguments["out"].gradient is None
    (trained,) = recorded(c, trained=True)
    assert trained.arguments["out"].gradient.shape == (18, 11)


def test_no_gradient_is_written_where_none_is_wanted() -> None:
    c = case()
    args, kl = rows_of(c, c.dtype)
    options: dict[str, Any] = {"kl": kl, "row_grad": None}
    value = selection_kl(*args, **options, needs_grad=(False, False, False), limit_bytes=1)
    assert value.grad_hidden.numel() == 0
    assert torch.equal(value.kl, selection(c, trained=False).kl)


def test_row_tensors_of_another_length_are_refused() -> None:
    c = case(torch.float32)
    c.step = c.step[:17]
    with pytest.raises(ValueError, match="one entry per row, 18 .* got 17"):
        selection(c, trained=False)
