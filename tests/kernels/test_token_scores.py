"""The token scores of two models, tile by tile, against means of dense softmaxes.

The interpreter takes the tiles of sm_90: 128 rows (64 beside a cap) and 128 tokens.

Legend: N rows, D and D' hidden sizes of the aligned and of the base model, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pact_kernels.kernels._launch.runtime import (
    INTERPRETED,
    TARGETS,
    descriptor,
    interpreting,
    recording,
)
from pact_kernels.kernels.token_scores import token_scores
from pact_kernels.naive.token_scores import token_scores as naive
from pact_kernels.types import Head
from tests.kernels.problem import (
    DTYPES,
    EVEN_WIDTH,
    HEADS,
    PLENTY,
    TOLERANCE,
    WIDTH,
    Problem,
    amid_nans,
    assert_near,
    problem,
    with_exact_sums,
    with_head,
)
from tests.ops.compare import relative_error
from tests.ops.precision import assert_at_most_twice

pytestmark = pytest.mark.usefixtures("poisoned")

MODES = ["p_diff", "pref_logratio"]
OPTIONS = {"mode": "p_diff", "limit_bytes": PLENTY}
BASE_WIDTH = 80  # another hidden size: more than one step of 64, and a ragged one


class Case(NamedTuple):
    """Both models on the same rows, and the sample of every row."""

    aligned: Problem
    base: Problem
    sample: Tensor  # (N,)

    def arguments(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """As the naive formula takes them, in another dtype if one is given."""
        (h, w, b), (g, u, c) = (
            (t if dtype is None else t.to(dtype) for t in (m.hidden, m.weight, m.bias))
            for m in (self.aligned, self.base)
        )
        return {
            "aligned_hidden": h,
            "aligned_weight": w,
            "aligned_bias": b,
            "base_hidden": g,
            "base_weight": u,
            "base_bias": c,
            "sample": self.sample,
        }


def case(
    rows: int = 133,  # a tile of 128 rows and 5 more
    width: int = WIDTH,
    tokens: int = 150,  # a tile of 128 tokens and a ragged one
    dtype: torch.dtype = torch.float32,
    base_dtype: torch.dtype | None = None,
) -> Case:
    sample = torch.tensor([5, -2, 9, 5, 7])  # any numbering, in any order, of unequal sizes
    return Case(
        problem(rows, width, tokens, dtype),
        problem(rows, BASE_WIDTH, tokens, base_dtype or dtype, seed=1),
        sample[torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(2))],
    )


def exactly_added(c: Case) -> Case:
    """The case with logits whose sums are exact, so that bits may be compared."""
    return c._replace(aligned=with_exact_sums(c.aligned), base=with_exact_sums(c.base))


def scores(c: Case, *, biased: bool = True, **options: Any) -> tuple[Tensor, Tensor]:
    """The kernel's, of a mean over samples of means over their rows."""
    _, group, counts = c.sample.unique(return_inverse=True, return_counts=True)
    row_weight = 1.0 / (counts[group] * counts.numel()).double()
    temperature = options.pop("temperature", 1.0)
    (aligned, options), (base, _) = (
        with_head(m.weight, m.bias if biased else None, {**OPTIONS, **options})
        for m in (c.aligned, c.base)
    )
    return token_scores(
        c.aligned.hidden,
        aligned.at_temperature(temperature),
        c.base.hidden,
        base.at_temperature(temperature),
        row_weight,
        **options,
    )


def assert_scores(c: Case, got: tuple[Tensor, Tensor], **options: Any) -> None:
    for ours, exact in zip(got, naive(**c.arguments(torch.float64), **options), strict=True):
        assert_near(ours, exact)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_eager_torchs(dtype: torch.dtype, mode: str) -> None:
    c = case(dtype=dtype)
    names = ("difference", "confidence")
    got, eager, exact = (
        dict(zip(names, values, strict=True))
        for values in (
            scores(c, mode=mode),
            naive(**c.arguments(), mode=mode),
            naive(**c.arguments(torch.float64), mode=mode),
        )
    )
    assert_at_most_twice(got, eager, exact, dtype)


@pytest.mark.parametrize(
    ("width", "temperature"), [(EVEN_WIDTH, 1.7), (WIDTH, 1.0)], ids=["descriptors", "pointers"]
)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("mode", MODES)
def test_options_match_naive(mode: str, name: str, temperature: float, width: int) -> None:
    c = case(rows=70, width=width, dtype=torch.bfloat16)
    tiles = descriptor(c.aligned.hidden, [64, 64], INTERPRETED)
    assert (tiles is not c.aligned.hidden) == (width == EVEN_WIDTH)
    options = {"mode": mode, "temperature": temperature, **HEADS[name]}
    assert_scores(c, scores(c, **options), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_the_tiles_of_every_target(name: str, dtype: torch.dtype) -> None:
    # More than one tile of 64 rows and of 64 tokens; the steps of one model are masked, in turn.
    width, base_width = (128, 67) if dtype == torch.float32 else (67, 64)
    c = case(70, width, 90, dtype)
    c = c._replace(base=problem(70, base_width, 90, dtype, seed=1))
    with interpreting(TARGETS[name]):
        got = scores(c, mode="pref_logratio")
    assert_scores(c, got, mode="pref_logratio")


def test_models_of_two_dtypes() -> None:
    c = case(rows=20, dtype=torch.bfloat16, base_dtype=torch.float32)
    assert_scores(c, scores(c))


def test_without_biases() -> None:
    c = case(rows=20, width=19)  # fewer columns than a step
    c.aligned.bias.zero_()
    c.base.bias.zero_()
    with_zeros = scores(c)
    assert_scores(c, with_zeros)
    without = scores(c, biased=False)
    assert all(torch.equal(a, b) for a, b in zip(without, with_zeros, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_equal_models_score_zero(mode: str) -> None:
    c = case(rows=20)
    difference, confidence = scores(c._replace(base=c.aligned), mode=mode)
    assert not difference.any()
    assert float(confidence.sum()) == pytest.approx(1.0, rel=1e-6)


def test_one_row_and_no_row() -> None:
    c = case(rows=1)
    assert_scores(c, scores(c))
    for values in scores(case(rows=0)):
        assert torch.equal(values, torch.zeros(150))


@pytest.mark.parametrize("mode", MODES)
def test_extreme_logits(mode: str) -> None:
    """One token takes all of the mass, a different one in each model: P_aligned is 0 or 1."""
    c = case(rows=3, width=16)
    for model, token in ((c.aligned, 7), (c.base, 140)):
        model.weight.zero_()
        model.bias.fill_(-1e4)
        model.bias[token] = 1e4
    assert_scores(c, scores(c, mode=mode), mode=mode)
    for model in (c.aligned, c.base):
        model.bias.fill_(1e4)  # all equal; half a rounding of a log-sum-exp of 1e4 is 5e-4
    difference, confidence = scores(c, mode=mode)
    assert not difference.any()
    torch.testing.assert_close(confidence, torch.full((150,), 1 / 150), rtol=5e-4, atol=0)


def test_tokens_ruled_out() -> None:
    """Padded tokens have a bias of -inf in both models: no confidence, and no difference."""
    c = case(rows=20)
    for model in (c.aligned, c.base):
        model.bias[140:] = -torch.inf
    few = Case(
        *(Problem(m.hidden, m.weight[:140], m.bias[:140]) for m in (c.aligned, c.base)), c.sample
    )
    for mode in MODES:
        exact = naive(**few.arguments(torch.float64), mode=mode)
        for ours, value in zip(scores(c, mode=mode), exact, strict=True):
            assert_near(ours[:140], value)
            assert not ours[140:].any()


def test_a_token_that_the_base_model_alone_rules_out() -> None:
    c = case(rows=5, width=16)
    c.base.bias[3] = -torch.inf
    difference, _ = scores(c, mode="pref_logratio")
    assert difference[3] == -torch.inf
    assert bool(difference[4:].isfinite().all())


@pytest.mark.parametrize("columns", [8, 3], ids=["descriptors", "pointers"])
def test_strided_rows_amid_nans(columns: int) -> None:
    c = exactly_added(case(rows=20, width=EVEN_WIDTH, dtype=torch.bfloat16))
    strided = c._replace(
        aligned=Problem(
            amid_nans(c.aligned.hidden, columns),
            amid_nans(c.aligned.weight, columns),
            c.aligned.bias,
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(scores(strided), scores(c), strict=True))


def test_strided_columns() -> None:
    c = exactly_added(case(rows=20))
    turned = c._replace(
        aligned=Problem(
            c.aligned.hidden.T.contiguous().T, c.aligned.weight.T.contiguous().T, c.aligned.bias
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(scores(turned), scores(c), strict=True))


def test_splits_of_the_rows() -> None:
    """Three row tiles: a split each, or one split for all where the limit allows no more."""
    c = case(rows=300, width=16, tokens=19)
    apart, together = scores(c), scores(c, limit_bytes=1)
    assert_scores(c, apart)
    for a, b in zip(apart, together, strict=True):
        assert relative_error(a, b) <= TOLERANCE  # sums of 300 rows, in another order
    assert all(torch.equal(a, b) for a, b in zip(scores(c), apart, strict=True))


@pytest.mark.parametrize("vocabulary", [128_256, 1000])
def test_partials_stay_within_the_limit(vocabulary: int) -> None:
    rows, limit = 10_000, 2**22
    hidden = torch.empty(rows, 64, device="meta")
    weight = torch.empty(vocabulary, 64, device="meta")
    model = (hidden, Head(weight))
    with recording(TARGETS["sm_90"]) as launches:
        token_scores(*model, *model, hidden[:, 0], **{**OPTIONS, "limit_bytes": limit})
    last = launches[-1]
    splits, size = last.arguments["out"].difference.shape
    assert last.grid == (splits, -(-vocabulary // 128))
    assert size == vocabulary
    assert 8 * splits * vocabulary <= limit
    tiles, each = (
        -(-rows // last.arguments["TILE"].aligned.columns),
        last.arguments["tiles_per_split"],
    )
    assert (splits - 1) * each < tiles <= splits * each  # none is empty, and all tiles are walked
    assert splits == {128_256: 4, 1000: 16}[vocabulary]
