"""The chunk loop's cut into chunks, and what it launches on them.

Legend: N rows, V vocabulary, M chunk rows.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.common.requests import KlRequest
from pact_kernels.kernels import head_loss as kernels
from pact_kernels.kernels._launch.gemm import add_by_copies_
from pact_kernels.kernels._launch.runtime import TARGETS, Launch, recording, tensors
from pact_kernels.kernels.head_loss import rows_per_chunk
from pact_kernels.types import Head
from tests.kernels.chunk import LossOptions
from tests.kernels.head_case import NONE, PLENTY, ROWS, TOLERANCE, assert_near, run
from tests.ops.compare import relative_error
from tests.ops.rounded_problem import rounded

overs = pytest.mark.parametrize("over", [None, "selection", "vocabulary"])


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The chunk (M, V) of every launch of the row losses."""
    seen: list[Tensor] = []
    original = kernels.launch_chunk_loss

    def recorded(chunk: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(chunk)
        original(chunk, *args, **kwargs)

    monkeypatch.setattr(kernels, "launch_chunk_loss", recorded)
    return seen


@pytest.mark.parametrize("gathered", [False, True], ids=["all rows", "kept rows"])
@overs
def test_chunks_and_a_ragged_one(over: str | None, gathered: bool, chunks: list[Tensor]) -> None:
    """In a workspace of some ten rows; one buffer serves them all."""
    p = rounded(ignored=0.4 if gathered else 0.0)
    limit = 13_000 if gathered else 20_000
    factor = torch.linspace(-1.0, 2.0, ROWS)
    got = run(p, over, limit_bytes=limit, row_grad=factor)
    assert_near(got, run(p, over, exact=True, row_grad=factor))
    rows = [chunk.shape[0] for chunk in chunks]
    assert sum(rows) == p.step.numel()
    assert len(rows) >= 3 and len(set(rows[:-1])) == 1 and rows[-1] < rows[0]
    assert {chunk.data_ptr() for chunk in chunks} == {chunks[0].data_ptr()}
    assert chunks[0].untyped_storage().nbytes() <= limit
    assert chunks[0].stride() == (304, 1)  # rows start at multiples of 16 bytes


def test_chunks_of_one_row_however_small_the_workspace(chunks: list[Tensor]) -> None:
    p = rounded(rows=5, ignored=0.0)
    assert_near(run(p, "selection", limit_bytes=1), run(p, "selection", exact=True))
    assert [chunk.shape[0] for chunk in chunks] == [1] * 5


@pytest.mark.parametrize("dtype, stride", [(torch.bfloat16, 304), (torch.float32, 300)])
def test_rows_of_a_chunk_start_at_multiples_of_16_bytes(
    dtype: torch.dtype, stride: int, chunks: list[Tensor]
) -> None:
    hidden, weight = torch.ones(2, 4, dtype=dtype), torch.ones(299, 4, dtype=dtype)
    kernels.head_loss(
        hidden,
        Head(weight),
        term=LossOptions(term="logsumexp").request,
        needs_grad=(True, False, False),
        limit_bytes=PLENTY,
    )
    assert chunks[0].stride() == (stride, 1)


# (N, most rows within the limit) -> M: whole GEMM tiles of 128 rows where they fit.
CHUNK_ROWS = {
    (0, 5): 1,
    (37, 0): 1,
    (37, 10): 10,  # four chunks of 10, 10, 10, 7
    (37, 36): 19,  # two, about equal
    (37, 1000): 128,  # all in one: the buffer has 37 rows
    (129, 128): 128,
    (300, 130): 128,  # 130 are cut to 128
    (1000, 300): 256,  # four, of 250 rows rounded up
    (513, 400): 384,  # two, of 257 rounded up
    (4096, 1024): 1024,
}


@pytest.mark.parametrize("given", CHUNK_ROWS, ids=str)
def test_rows_per_chunk(given: tuple[int, int]) -> None:
    assert rows_per_chunk(*given) == CHUNK_ROWS[given]


@pytest.mark.parametrize("in_place", [False, True], ids=["kept rows", "rows in place"])
@pytest.mark.parametrize("term", ["cross_entropy", "logsumexp"])
def test_streaming_gives_the_chunks_values(term: str, in_place: bool, chunks: list[Tensor]) -> None:
    """Without gradients there is no chunk."""
    p = rounded()
    num_rows = ROWS if in_place else None
    options = LossOptions(term=term, z_loss=0.01 if term == "cross_entropy" else 0.0, softcap=4.0)
    streamed = run(p, None, options=options, needs_grad=NONE, num_rows=num_rows)
    assert not chunks
    assert_near(streamed, run(p, None, options=options, needs_grad=NONE, exact=True))
    in_chunks = run(p, None, options=options, needs_grad=(True, False, False), num_rows=num_rows)
    assert chunks
    assert relative_error(streamed.term, in_chunks.term) <= 2 * TOLERANCE  # each off by one


@pytest.mark.parametrize("ignored", [0.4, 0.0], ids=["kept rows", "all rows"])
def test_streaming_in_a_tiny_workspace(ignored: float) -> None:
    """Kept rows are gathered 128 at a time, however little room there is: 144 of 240 make two."""
    p = rounded(rows=240, vocabulary=67, ignored=ignored)
    assert kernels.ROW_MULTIPLE < p.step.numel() < 2 * kernels.ROW_MULTIPLE
    options = LossOptions()
    streamed = run(p, None, options=options, needs_grad=NONE, limit_bytes=1)
    assert_near(streamed, run(p, None, options=options, needs_grad=NONE, exact=True))


NUM_ROWS = 1000
TOKENS = 5003
LIMIT_BYTES = 2 * NUM_ROWS * TOKENS // 5
"""A fifth of the logits in 16 bits."""


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that is nowhere."""
    return torch.empty(shape, dtype=dtype, device="meta")


def kl_of_states(num_rows: int, num_tokens: int, over: str) -> KlRequest:
    """A KL whose reference is given as states of 64 columns that are nowhere."""
    lse = meta(num_rows, dtype=torch.float32)
    return KlRequest(
        token_weights=meta(num_tokens),
        step=meta(num_rows, dtype=torch.int64),
        reference_full=meta(num_rows, 64),
        reference_post=meta(num_rows, 64),
        reference_head=Head(meta(num_tokens, 64)),
        full_lse=lse,
        post_lse=lse,
        row_weight=None,
        gate=pk.GateConfig(),
        over=over,  # type: ignore[arg-type]
        temperature=2.0 if over == "selection" else 1.0,
        kl_weight=1.0,
    )


def recorded(
    over: str | None,
    *,
    num_tokens: int = 50,
    trained: bool = False,
    target: str = "sm_80",  # where chunks are of logits, see `configs.TAKES_EXPONENTIALS`
) -> list[Launch]:
    """Launches on meta tensors, in the workspace LIMIT_BYTES."""
    kl = None if over is None else kl_of_states(NUM_ROWS, num_tokens, over)
    with recording(TARGETS[target]) as launches:
        kernels.head_loss(
            meta(NUM_ROWS, 128),
            Head(meta(TOKENS, 128)),
            meta(NUM_ROWS, dtype=torch.int64),
            None if over is None else meta(num_tokens, dtype=torch.int64),
            term=LossOptions().request,
            kl=kl,
            row_grad=None,
            needs_grad=(True, trained, False),
            limit_bytes=LIMIT_BYTES,
            num_rows=NUM_ROWS,
        )
    return launches


def names(launches: list[Launch]) -> Counter[str]:
    return Counter(launch.kernel.fn.__name__.strip("_") for launch in launches)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"], ids=["logits", "exponentials"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@overs
def test_no_launch_sees_more_of_the_logits_than_a_chunk(
    over: str | None, trained: bool, target: str
) -> None:
    chunk_bytes = set()
    for launch in recorded(over, trained=trained, target=target):
        for name, value in launch.arguments.items():
            for tensor in tensors([value]):
                assert tensor.untyped_storage().nbytes() <= LIMIT_BYTES, name
                if name in ("chunk", "chunk_tiles"):
                    chunk_bytes.add(tensor.untyped_storage().nbytes())
    (size,) = chunk_bytes
    assert size > LIMIT_BYTES / 2  # the workspace is used, too


@pytest.mark.parametrize("num_tokens", [50, 300], ids=["fused", "in parts"])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_the_kl_adds_its_own_launches_and_no_product_with_the_vocabulary(
    over: str, num_tokens: int
) -> None:
    without, added = names(recorded(None)), names(recorded(over, num_tokens=num_tokens))
    num_chunks = without["chunk_loss_kernel"]
    assert without == {"chunk_loss_kernel": num_chunks, "chunk_gradient_kernel": num_chunks}
    assert num_chunks >= 4
    # One for all rows, or for a block: 300 logits of 1000 rows are more than a quarter of the
    # workspace. Over the vocabulary a chunk's log-sum-exps complete it, in `chunk_loss`.
    kernel = "pact_kl_kernel" if over == "selection" else "mixed_target_kernel"
    times = 1 if num_tokens == 50 else added[kernel]
    assert times <= added["chunk_loss_kernel"]
    expected = {kernel: times}
    if num_tokens > 256:
        expected["selected_logits_kernel"] = 3 * times
    assert {name: count for name, count in added.items() if "chunk" not in name} == expected
    assert added["chunk_loss_kernel"] == added["chunk_gradient_kernel"]
    # Its own workspace makes chunks a little smaller, hardly more of them.
    assert num_chunks <= added["chunk_loss_kernel"] <= num_chunks + 2


@pytest.mark.parametrize("limit_bytes", [1, 1000, 10**6])
def test_the_weights_gradient_of_16_bit_chunks_is_summed_in_fp32(limit_bytes: int) -> None:
    """Products of 1 + 2^-7 with itself, which 8 bits of mantissa cannot hold."""
    gradient = torch.full((5, 7), 1 + 2**-7, dtype=torch.bfloat16)
    rows = torch.full((5, 3), 1 + 2**-7, dtype=torch.bfloat16)
    total = torch.ones(7, 3)
    add_by_copies_(total, gradient, rows, limit_bytes)
    assert torch.equal(total, torch.full((7, 3), 1 + 5 * (1 + 2**-7) ** 2))
