"""The streaming log-sum-exp, with targets and selected tokens on the way, against dense logits.

The interpreter takes the tiles of sm_90: 128 rows, 256 tokens (128 beside targets or a cap), and 8
tiles to a split.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pact_kernels.kernels._kernels.linear_logsumexp import Streamed, launch_linear_logsumexp
from pact_kernels.kernels._launch.runtime import (
    INTERPRETED,
    TARGETS,
    descriptor,
    interpreting,
    recording,
)
from pact_kernels.naive.linear_logsumexp import linear_logsumexp as naive
from pact_kernels.types import Head
from tests.kernels.problem import (
    DTYPES,
    EVEN_WIDTH,
    HEADS,
    PLENTY,
    TOKENS,
    WIDTH,
    Problem,
    amid_nans,
    assert_near,
    problem,
    with_exact_sums,
    with_head,
)
from tests.ops.precision import assert_at_most_twice

pytestmark = pytest.mark.usefixtures("poisoned")

TWO_SPLITS = 2309  # nine tiles of 256 tokens and a ragged one: a whole split, and a short one
IDS = torch.tensor([300, 0, 17, 255, 256, 128, 3])  # tiles' first and last tokens, in any order


def streamed(p: Problem, *args: Tensor | None, **options: Any) -> Streamed:
    options = {**HEADS["plain"], "limit_bytes": PLENTY, **options}
    head, options = with_head(p.weight, p.bias, options)
    return launch_linear_logsumexp(p.hidden, head, *args, **options)


def targets(p: Problem) -> Tensor:
    """Some of them ignored, and both ends of the vocabulary among them."""
    rows, vocabulary = p.hidden.shape[0], p.weight.shape[0]
    target = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(1))
    target[:4] = torch.tensor([0, vocabulary - 1, -100, -100])[:rows]
    return target


def assert_all_near(p: Problem, out: Streamed, target: Tensor, ids: Tensor, **head: Any) -> None:
    z = p.logits(**head)
    assert_near(out.lse, z.logsumexp(-1))
    at = z.gather(1, target.clamp(min=0)[:, None])[:, 0].where(target >= 0, 0.0)
    assert_near(out.at_target, at)
    assert_near(out.selected, z[:, ids])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_eager_torchs(dtype: torch.dtype) -> None:
    p = problem(tokens=TWO_SPLITS, dtype=dtype)
    out = streamed(p)
    exact, eager = p.logits().logsumexp(-1), naive(p.hidden, p.weight, bias=p.bias)
    assert_at_most_twice({"lse": out.lse}, {"lse": eager}, {"lse": exact}, dtype)
    assert_near(out.lse, exact)
    assert out.at_target.shape == (0,)
    assert out.selected.shape == (37, 0)


@pytest.mark.parametrize("width", [EVEN_WIDTH, WIDTH], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("name", HEADS)
def test_targets_and_selected_tokens(name: str, width: int) -> None:
    p = problem(width=width, dtype=torch.bfloat16)
    tiles = descriptor(p.hidden, [128, 64], INTERPRETED)
    assert (tiles is not p.hidden) == (width == EVEN_WIDTH)
    target = targets(p)
    assert_all_near(p, streamed(p, target, IDS, **HEADS[name]), target, IDS, **HEADS[name])


def test_without_a_bias_and_with_a_target_or_selected_tokens_alone() -> None:
    p = problem(width=EVEN_WIDTH)
    p.bias.zero_()
    target, z = targets(p), p.logits()
    no_bias = (p.hidden, Head(p.weight))
    options = {"limit_bytes": PLENTY}
    with_target = launch_linear_logsumexp(*no_bias, target, None, **options)
    with_tokens = launch_linear_logsumexp(*no_bias, None, IDS, **options)
    for out in (with_target, with_tokens):
        assert_near(out.lse, z.logsumexp(-1))
    assert_near(
        with_target.at_target, z.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
    )
    assert_near(with_tokens.selected, z[:, IDS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_the_tiles_of_every_target(name: str, dtype: torch.dtype) -> None:
    # More than one tile of 64 rows and of 64 tokens; one of two widths masks, the other does not.
    p = problem(rows=70, width=128 if dtype == torch.float32 else 67, tokens=150, dtype=dtype)
    target, ids = targets(p), IDS % 150
    with interpreting(TARGETS[name]):
        assert_all_near(p, streamed(p, target, ids), target, ids)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows: int) -> None:
    p = problem(rows=rows)
    target = targets(p)
    assert_all_near(p, streamed(p, target, IDS), target, IDS)


def test_selected_tokens_beyond_a_tile() -> None:
    p = problem(rows=5, width=19, tokens=700)  # fewer columns than a step
    ids = torch.arange(700).flip(0)[:300]  # a tile of 256 and 44 more
    target = targets(p)
    assert_all_near(p, streamed(p, target, ids), target, ids)


def test_extreme_logits() -> None:
    p = problem(rows=5, width=16, tokens=TWO_SPLITS)
    p.hidden.fill_(1.0)
    p.weight.zero_()
    p.bias.copy_(torch.linspace(-1e4, 1e4, TWO_SPLITS))
    roundings = 3 * 2.0**-24  # the logits are exact: of each split's sum, and of the whole's
    assert_near(streamed(p).lse, p.logits().logsumexp(-1), roundings)
    for value in (1e4, -1e4):  # all equal: log V beside them
        p.bias.fill_(value)
        assert_near(streamed(p).lse, p.logits().logsumexp(-1), roundings)


def test_tokens_ruled_out() -> None:
    """A bias of -inf takes a token out: of a padded end, of a whole split, of the vocabulary."""
    p = problem(rows=5, width=16, tokens=TWO_SPLITS)
    for ruled_out in (slice(2300, None), slice(0, 2100)):
        kept = p.bias.clone()
        p.bias[ruled_out] = -torch.inf
        assert_near(streamed(p).lse, p.logits().logsumexp(-1))
        p.bias.copy_(kept)
    p.bias.fill_(-torch.inf)
    assert bool((streamed(p).lse == -torch.inf).all())


@pytest.mark.parametrize("columns", [8, 3], ids=["descriptors", "pointers"])
def test_strided_rows_amid_nans(columns: int) -> None:
    p = with_exact_sums(problem(width=EVEN_WIDTH, dtype=torch.bfloat16))
    strided = Problem(amid_nans(p.hidden, columns), amid_nans(p.weight, columns), p.bias)
    assert (descriptor(strided.hidden, [128, 64], INTERPRETED) is strided.hidden) == (columns == 3)
    for every in (1, 2):
        part = Problem(strided.hidden[::every], strided.weight, p.bias)
        assert torch.equal(streamed(part).lse, streamed(p).lse[::every])


def test_a_rows_bits_do_not_depend_on_the_other_rows() -> None:
    """Exact sums: else the product's order of addition, which is the processor's, shows."""
    p = with_exact_sums(problem(rows=133))  # a tile of 128 rows and 5 more
    target = targets(p)
    together = streamed(p, target, IDS)
    for row in (0, 77, 127, 128, 132):
        index = slice(row, row + 1)
        alone = streamed(Problem(p.hidden[index], p.weight, p.bias), target[index], IDS)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a, b[index])


def test_chunks_stay_within_the_limit_and_change_no_bit() -> None:
    p = with_exact_sums(problem(rows=300, width=16, tokens=TOKENS))
    target = targets(p)
    whole, cut = streamed(p, target, IDS), streamed(p, target, IDS, limit_bytes=2 * 4 * 128)
    for a, b in zip(cut, whole, strict=True):
        assert torch.equal(a, b)


def test_partials_stay_within_the_limit() -> None:
    rows, vocabulary, limit = 1000, 128_256, 2**18
    hidden = torch.empty(rows, 64, device="meta")
    weight = torch.empty(vocabulary, 64, device="meta")
    with recording(TARGETS["sm_90"]) as launches:
        launch_linear_logsumexp(hidden, Head(weight), limit_bytes=limit)
    partials = [launch.arguments["partial"].max for launch in launches[::2]]  # stream, finish, ...
    assert sum(partial.shape[1] for partial in partials) == rows
    assert len(partials) > 1
    assert all(2 * partial.nbytes <= limit for partial in partials)
