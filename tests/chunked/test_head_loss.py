"""The chunk loop's own cut, and what it promises about its buffers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

import pact_kernels as pk
from pact_kernels.chunked import head_loss as loop
from pact_kernels.chunked._sweep import LEAST_TILE_TOKENS, tile_tokens
from pact_kernels.common.rows import kept_rows
from tests.ops.compare import TINY_MIB
from tests.ops.problem import problem


class Cut(NamedTuple):
    """How a call was cut."""

    rows: int  # of a chunk
    block_rows: int
    tiles: list[tuple[int, int]]


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[Cut]:
    """The cut of every chunk that runs."""
    seen: list[Cut] = []
    original = loop._Chunks.chunk

    def recorded(self: Any, index: slice, values: torch.Tensor) -> None:
        rows = index.stop - index.start
        seen.append(Cut(rows, min(self.block_rows, rows), self.sweep.tiles))
        return original(self, index, values)

    monkeypatch.setattr(loop._Chunks, "chunk", recorded)
    return seen


def test_the_tests_tiny_workspace_makes_ragged_chunks_and_tiles(cuts: list[Cut]) -> None:
    p = problem(ignored=0.37)
    with pk.workspace(TINY_MIB):
        loss = pk.linear_cross_entropy(p.hidden.clone().requires_grad_(), p.weight, p.target)
        loss.backward()
    rows = [cut.rows for cut in cuts]
    assert sum(rows) == int((p.target != -100).sum())
    assert len(rows) > 1 and rows[-1] < rows[0]
    widths = [high - low for low, high in cuts[0].tiles]
    assert sum(widths) == p.weight.shape[0]
    assert len(widths) > 2 and widths[-1] < widths[0]


def test_a_kl_makes_several_blocks_of_a_chunk(cuts: list[Cut]) -> None:
    p = problem()
    with pk.workspace(0.05):
        pk.pact_loss(p.hidden, p.weight, p.target, p.token_ids, p.token_weights, p.step, p.logits())
    assert 1 < cuts[0].block_rows < cuts[0].rows
    assert cuts[0].rows % cuts[0].block_rows  # the last block is ragged


def test_a_trained_head_keeps_its_tiles_and_takes_fewer_rows(cuts: list[Cut]) -> None:
    p = problem(rows=70)
    for trained in (False, True):
        with pk.workspace(0.05):
            weight = p.weight.clone().requires_grad_(trained)
            pk.linear_cross_entropy(p.hidden.clone().requires_grad_(), weight, p.target)
    assert max(cut.rows for cut in cuts[1:]) < cuts[0].rows


def test_a_chunk_of_one_row_however_small_the_workspace(cuts: list[Cut]) -> None:
    p = problem()
    with pk.workspace(1e-6):
        pk.linear_cross_entropy(p.hidden, p.weight, p.target)
    assert {cut.rows for cut in cuts} == {1}
    assert cuts[0].tiles[0] == (0, LEAST_TILE_TOKENS)


def test_tile_tokens() -> None:
    hidden, narrow = torch.empty(1, 1), torch.empty(1, 1, dtype=torch.bfloat16)
    many = 10**6
    assert tile_tokens(many, hidden, 1, 2**30) == 1024
    assert [tile_tokens(many, narrow, rows, 2**30) for rows in (1, 256, many)] == [
        16384,
        8192,
        4096,
    ]
    assert tile_tokens(many, hidden.to("meta"), many, 2**30) == 16384
    assert tile_tokens(100, hidden, many, 2**30) == 100
    assert tile_tokens(many, hidden, many, 16 * 3 * 4 * 500) == 500  # 16 rows of three fp32 tiles
    assert tile_tokens(many, hidden, many, 1) == LEAST_TILE_TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_of_the_vocabulary_may_be_masked_out(dtype: torch.dtype) -> None:
    """A bias of -inf: no logit of a whole tile counts, the first one or a later one."""
    p = problem()
    for masked in (slice(0, 128), slice(130, 290)):
        bias = torch.zeros(p.weight.shape[0])
        bias[masked] = -torch.inf
        target = torch.full_like(p.target, 129)
        results = []
        for implementation in ("naive", "chunked"):
            hidden = p.hidden.to(dtype, copy=True).requires_grad_()
            with pk.implementation(implementation), pk.workspace(1e-6):  # tiles of 64 tokens
                loss = pk.linear_cross_entropy(
                    hidden, p.weight.to(dtype), target, bias=bias.to(dtype)
                )
            loss.backward()
            results += [loss.detach(), hidden.grad]
        rtol, atol = (2e-5, 1e-6) if dtype == torch.float32 else (3e-2, 1e-3)
        torch.testing.assert_close(results[2], results[0], rtol=rtol, atol=atol)
        torch.testing.assert_close(results[3], results[1], rtol=rtol, atol=atol)


@pytest.mark.parametrize("logits", [[-300.0, 0.0, 300.0], [300.0, 0.0, -300.0]])
def test_rows_whose_maximum_moves_by_more_than_the_exponents_range(logits: list[float]) -> None:
    """Each of the three tiles has logits exp of whose difference is 0 or inf in fp32."""
    weight = torch.tensor(logits).repeat_interleave(LEAST_TILE_TOKENS)[:, None]
    hidden = torch.ones(2, 1, requires_grad=True)
    target = torch.tensor([0, 3 * LEAST_TILE_TOKENS - 1])
    with pk.workspace(1e-6):
        loss = pk.linear_cross_entropy(hidden, weight, target, reduction="sum")
    loss.backward()
    log = torch.tensor(float(LEAST_TILE_TOKENS)).log()  # as many tokens share the largest logit
    torch.testing.assert_close(loss.detach(), 600.0 + 2 * log)
    torch.testing.assert_close(hidden.grad, (300.0 - weight[target]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_poisoned_buffers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a fresh buffer holds, none of it reaches a result."""
    p = problem()
    new_empty = torch.Tensor.new_empty

    def results() -> list[torch.Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (p.hidden, p.weight, p.bias)]
        hidden, weight, bias = leaves
        with pk.workspace(TINY_MIB):
            loss = pk.pact_loss(
                hidden,
                weight,
                p.target,
                p.token_ids,
                p.token_weights,
                p.step,
                pk.ReferenceStates(*(t.to(dtype) for t in p.states[:3])),
                over="vocabulary",
                bias=bias,
                softcap=5.0,
            ).loss
            loss.backward()
            logits = pk.selected_logits(hidden, weight, p.token_ids)
            logits.sum().backward()
        return [loss.detach(), logits.detach(), *(leaf.grad for leaf in leaves)]

    clean = results()

    def poisoned(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        buffer = new_empty(self, *args, **kwargs)
        return buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer.fill_(-1)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert torch.isnan(clean[0].new_empty(2)).all()
    assert all(torch.equal(a, b) for a, b in zip(results(), clean, strict=True))


def test_kept_rows() -> None:
    target = torch.tensor([3, -100, 0, -100])
    assert kept_rows(target, -100, 5, None).tolist() == [0, 2]
    assert kept_rows(target[:1], -100, 5, None) is None
    assert kept_rows(None, -100, 5, None) is None
    assert kept_rows(target[1:2], -100, 5, None).tolist() == []
    assert kept_rows(target[:0], -100, 5, None) is None


def test_kept_rows_whose_number_is_known() -> None:
    target = torch.tensor([3, -100, 0, -100])
    assert kept_rows(target, -100, 5, 2).tolist() == [0, 2]
    assert kept_rows(target, -100, 5, 4) is None  # as many as there are positions: all stay
    with pytest.raises(ValueError, match="one entry per row, 2 once .*per position, 4.*, got 3"):
        kept_rows(target, -100, 5, 3)
