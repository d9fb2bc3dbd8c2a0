"""`token_scores` against means of dense softmaxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pact_kernels as pk
from pact_kernels.chunked import token_scores as chunked
from tests.ops.compare import relative_error
from tests.ops.problem import problem
from tests.rounding import EXACT

SAMPLE = torch.tensor([5, -2, 9, 5, 7])  # any numbering, in any order, of unequal sizes
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 1.7},
    "head": {"softcap": 4.0, "logit_scale": 0.9, "temperature": 1.7},
}


def samples(rows: int) -> torch.Tensor:
    return SAMPLE[torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(0))]


def scores(implementation: str, mib: float, *args: Any, **options: Any) -> list[torch.Tensor]:
    with pk.implementation(implementation), pk.workspace(mib):
        return list(pk.token_scores(*args, **options))


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
def test_options_match_naive(mode: str, name: str, bias: bool) -> None:
    p = problem(vocabulary=613)  # two whole tiles of at least 256 tokens, and a ragged one
    full, _, weight, _ = problem(vocabulary=613, ignored=0.0).states
    args = (p.hidden, p.weight, full[:, :7], weight[:, :7], samples(37))
    options = {"mode": mode, **OPTIONS[name]}
    if bias:
        options |= {"aligned_bias": p.bias, "base_bias": p.bias.flip(0)}
    expected = scores("naive", 0.05, *args, **options)
    for mib in (0.05, 8.0):  # logits formed twice, and kept
        for a, b in zip(scores("chunked", mib, *args, **options), expected, strict=True):
            assert a.shape == b.shape == (613,)
            assert relative_error(a, b) < 10 * EXACT


def test_every_sample_counts_the_same_however_long() -> None:
    p = problem(rows=4)
    _, of_first = pk.token_scores(p.hidden[:1], p.weight, p.hidden[:1], p.weight, torch.tensor([0]))
    _, of_others = pk.token_scores(
        p.hidden[1:], p.weight, p.hidden[1:], p.weight, torch.tensor([3, 3, 3])
    )
    _, of_both = pk.token_scores(
        p.hidden, p.weight, p.hidden, p.weight, torch.tensor([0, 3, 3, 3], dtype=torch.int32)
    )
    torch.testing.assert_close(of_both, (of_first + of_others) / 2, rtol=EXACT, atol=0)
    assert float(of_both.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
def test_equal_models_score_zero(mode: str) -> None:
    p = problem()
    difference, _ = pk.token_scores(p.hidden, p.weight, p.hidden, p.weight, samples(37), mode=mode)
    assert not difference.any()


def test_sequences_and_the_same_bits_again() -> None:
    p = problem(rows=36)
    flat = (p.hidden.float(), p.weight.float())
    first = pk.token_scores(*flat, *flat, samples(36))
    again = pk.token_scores(
        flat[0].reshape(4, 9, -1), flat[1], flat[0].reshape(4, 9, -1), flat[1], samples(36)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_it_is_not_differentiable() -> None:
    p = problem()
    weight = p.weight.clone().requires_grad_()
    out = pk.token_scores(p.hidden, weight, p.hidden, weight, samples(37))
    assert not any(value.requires_grad for value in out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_are_kept_where_enough_rows_of_them_fit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of kept logits, the last one ragged, and of logits formed twice: the same scores."""
    chunks: list[int] = []
    keep = chunked._Reader.keep

    def recorded(self: Any, buffer: torch.Tensor, tile: int) -> None:
        chunks.append(self.states.shape[0])
        keep(self, buffer, tile)

    monkeypatch.setattr(chunked._Reader, "keep", recorded)
    p = problem(rows=301, vocabulary=613, ignored=0.0)
    full, weight = p.states[0].to(dtype), p.states[2].to(dtype)
    args = (p.hidden.to(dtype), p.weight.to(dtype), full, weight, samples(301))
    options = {"aligned_bias": p.bias.to(dtype), "softcap": 4.0}
    kept = scores("chunked", 6.0, *args, **options)
    # A row takes 16 bytes of a logit, or 4 in bf16, and 32 or 16 of a tile: 147 or 332 rows fit.
    assert chunks == ([101, 101, 101, 101, 99, 99] if dtype == torch.float64 else [301, 301])
    twice = scores("chunked", 0.01, *args, **options)
    assert len(chunks) in (2, 6)
    for a, b in zip(kept, twice, strict=True):
        assert relative_error(a, b) < (1e-12 if dtype == torch.float64 else 1e-5)
