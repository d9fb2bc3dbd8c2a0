"""Chunks of exponentials against the dense formula in float64, and against the loop over logits.

The interpreter takes the tiles of sm_90 for short hidden sizes, 128 rows by 128 tokens, and those
for long ones where `long_width` is asked for.
Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels import _exponential_chunks as exponential
from pact_kernels.kernels._exponential_chunks import rows_of_chunk, takes_exponentials
from pact_kernels.kernels._launch import configs
from pact_kernels.kernels._launch.runtime import TARGETS, interpreting, recording
from pact_kernels.kernels.head_loss import head_loss
from pact_kernels.types import Head
from tests.kernels.rounding import round_to_nearest
from tests.kernels.test_head_loss_chunks import kl_of_states, meta
from tests.ops.compare import outcome
from tests.ops.precision import FLOOR, assert_at_most_twice
from tests.ops.rounded_problem import rounded

BF16 = torch.bfloat16
MIB = 0.05
"""Some 40 rows of 301 entries: `rounded`'s 60 rows, of which 36 count, come in more chunks than one
beside a KL."""


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    round_to_nearest(monkeypatch)


@pytest.fixture
def long_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 rows by 256 tokens, exponentiated in parts."""
    monkeypatch.setattr(configs, "SHORT_WIDTH", 0)
    monkeypatch.setattr(configs, "SHORT_CAPPED_WIDTH", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A list with an entry for every call that took exponentials."""
    seen: list[int] = []
    original = exponential.ExponentialChunks.run

    def run(self: Any, *args: Any) -> None:
        seen.append(self.num_rows)
        original(self, *args)

    monkeypatch.setattr(exponential.ExponentialChunks, "run", run)
    yield seen


CROSS_ENTROPY: dict[str, dict[str, Any]] = {
    "plain": {},
    "capped": {"softcap": 4.0},
    "scaled": {"logit_scale": -0.7},
    "capped and scaled": {"softcap": 4.0, "logit_scale": 1.3},
    "z-loss": {"z_loss": 1e-2},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed, scaled, z-loss": {"label_smoothing": 0.2, "logit_scale": 1.3, "z_loss": 1e-2},
}


@pytest.mark.parametrize(
    "name, reduction, biased",
    [(name, reduction, True) for name in CROSS_ENTROPY for reduction in ("mean", "none")]
    + [("plain", "sum", False), ("smoothed", "none", False)],
)
def test_cross_entropy(name: str, reduction: str, biased: bool, calls: list[int]) -> None:
    assert_cross_entropy(name, reduction, biased)
    assert calls


def assert_cross_entropy(name: str, reduction: str, biased: bool) -> None:
    """Error of loss and gradients against float64, at most twice eager's."""
    p = rounded(BF16, rows=60)

    def call(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        options = {"bias": b if biased else None, "reduction": reduction, **CROSS_ENTROPY[name]}
        return pk.linear_cross_entropy(h, w, p.target, **options)

    narrow = [t.to(BF16) for t in (p.hidden, p.weight, p.bias)][: 3 if biased else 2]
    wide = [p.hidden, p.weight, p.bias][: 3 if biased else 2]
    got = outcome(call, *narrow, implementation="triton", mib=MIB)
    eager = outcome(call, *narrow, implementation="naive")
    assert_at_most_twice(got, eager, outcome(call, *wide, implementation="naive"), BF16)


@pytest.mark.parametrize("name", ["plain", "capped and scaled", "smoothed"])
def test_cross_entropy_of_a_long_hidden_size(name: str, calls: list[int], long_width: None) -> None:
    assert_cross_entropy(name, "mean", True)
    assert calls


@pytest.mark.parametrize("softcap, width", [(None, 576), (30.0, 2304)])
def test_short_hidden_sizes_take_tiles_of_their_own(softcap: float | None, width: int) -> None:
    """Two programs of a processor run one's exponentials during the other's product."""
    options: dict[str, Any] = {"crowded": softcap is not None, "even": True}
    short = configs.exponential_config(TARGETS["sm_90"], width, **options)
    assert short.programs_per_processor == 2
    assert configs.exponential_config(TARGETS["sm_90"], 4096, **options).tokens == 256
    other = configs.exponential_config(TARGETS["sm_100"], width, **options)
    assert other.programs_per_processor == 1


@pytest.mark.parametrize(
    "source, selected", [("states", 11), ("logits", 11), ("states", 300)], ids=str
)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_pact_loss(over: str, source: str, selected: int, calls: list[int]) -> None:
    """K 300 is past what forms logits beside the KL, and its target is often among the K."""
    p = rounded(BF16, rows=60, selected=selected)
    p.target[:3] = torch.where(p.target[:3] == -100, -100, p.token_ids[:3])

    def loss(dtype: torch.dtype) -> Any:
        states = pk.ReferenceStates(*(t.to(dtype) for t in p.states))
        wide = torch.promote_types(dtype, torch.float32)
        cached = pk.ReferenceLogits(*(t.to(wide) for t in p.logits() if t is not None))
        reference = states if source == "states" else cached
        return lambda h, w, b: pk.pact_loss(
            h,
            w,
            p.target,
            p.token_ids,
            p.token_weights.to(dtype),
            p.step,
            reference,
            bias=b,
            over=over,
            kl_weight=1.7,
            row_weight=p.row_weight,
            softcap=10.0,
        )

    narrow = [t.to(BF16) for t in (p.hidden, p.weight, p.bias)]
    got = outcome(loss(BF16), *narrow, implementation="triton", mib=MIB)
    assert calls
    eager = outcome(loss(BF16), *narrow, implementation="naive")
    exact = outcome(loss(torch.float64), p.hidden, p.weight, p.bias, implementation="naive")
    assert_at_most_twice(got, eager, exact, BF16)


def test_a_kl_alone_is_taken_against_the_largest_selected_logit(calls: list[int]) -> None:
    p = rounded(BF16, rows=40, ignored=0.0)

    def call(dtype: torch.dtype) -> Any:
        states = pk.ReferenceStates(*(t.to(dtype) for t in p.states))
        weights = p.token_weights.to(dtype)
        return lambda h, w, b: pk.pact_kl(
            h, w, p.token_ids, weights, p.step, states, bias=b, over="vocabulary"
        )

    narrow = [t.to(BF16) for t in (p.hidden, p.weight, p.bias)]
    got = outcome(call(BF16), *narrow, implementation="triton", mib=MIB)
    assert calls
    eager = outcome(call(BF16), *narrow, implementation="naive")
    exact = outcome(call(torch.float64), p.hidden, p.weight, p.bias, implementation="naive")
    assert_at_most_twice(got, eager, exact, BF16)


def far_rows() -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Ordinary rows among some of 1e2 and 1e4 nats, of equal logits, ruled out, ignored and NaN.

    Returns hidden (N, D), weight (V, D), bias (V,), target (N,), and the rows of finite loss.
    """
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 64, generator=g)
    weight = 0.2 * torch.randn(300, 64, generator=g)  # two tiles of 256, one of them ragged
    bias = 0.1 * torch.randn(300, generator=g)
    target = torch.randint(300, (40,), generator=g)
    hidden[3] *= 100
    hidden[4] *= 3000
    hidden[5] = 0.0
    hidden[20] *= 1e4
    bias[11] = -torch.inf
    bias[7], target[8] = -torch.inf, 7  # a target of probability 0
    target[[10, 30]] = -100
    hidden[10] = torch.nan
    finite = [row for row in range(40) if row != 8]
    return hidden.to(BF16), weight.to(BF16), bias.to(BF16), target, finite


@pytest.mark.parametrize("label_smoothing", [0.1, 0.6])
def test_a_token_that_is_ruled_out_makes_a_smoothed_loss_infinite(
    label_smoothing: float, calls: list[int]
) -> None:
    """Not a NaN, which infinity less infinity would be: the target's own logit may be the one."""
    hidden, weight, bias, target, _ = far_rows()
    hidden.requires_grad_()
    with pk.implementation("triton"):
        loss = pk.linear_cross_entropy(
            hidden, weight, target, bias=bias, label_smoothing=label_smoothing
        )
        with torch.no_grad():
            by_row = pk.linear_cross_entropy(
                hidden, weight, target, bias=bias, label_smoothing=label_smoothing, reduction="none"
            )
    assert calls
    assert float(loss.detach()) == torch.inf
    assert torch.equal(by_row, torch.where(target == -100, 0.0, torch.inf))


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_rows_past_the_range_of_a_softmax_against_their_target(
    softcap: float | None, z_loss: float, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk loop's answer, row by row: such rows are formed again."""
    hidden, weight, bias, target, finite = far_rows()
    found = {}
    for name in ("exponentials", "logits", "exact"):
        dtype = torch.float64 if name == "exact" else BF16
        monkeypatch.setitem(configs.TAKES_EXPONENTIALS, "sm_90", name == "exponentials")
        h, w, b = (t.to(dtype, copy=True).requires_grad_() for t in (hidden, weight, bias))
        with pk.implementation("chunked" if name == "exact" else "triton"), pk.workspace(MIB):
            loss = pk.linear_cross_entropy(
                h, w, target, bias=b, softcap=softcap, z_loss=z_loss, reduction="none"
            )
            loss[finite].sum().backward()
        found[name] = [t.double() for t in (loss.detach(), h.grad, w.grad, b.grad)]
    assert len(calls) == 1
    for got, loop, exact in zip(*found.values(), strict=True):
        assert torch.equal(got.isfinite(), exact.isfinite())
        rows = exact.reshape(len(exact), -1).nan_to_num(0.0, 0.0, 0.0)
        size = rows.norm(dim=1).clamp(min=1e-9)
        for values, most in ((got, 2.0), (loop, 4.0)):
            error = (values.reshape(len(exact), -1).nan_to_num(0.0, 0.0, 0.0) - rows).norm(dim=1)
            if exact.shape == found["exact"][1].shape:  # by hidden: relative to each row
                # The loop rounds a capped logit before it takes its slope: it keeps fewer digits.
                limit = most * 2**-8 if softcap is None or most == 2.0 else 0.1
                assert float((error / size).max()) <= limit
            else:
                assert float(error.max()) <= most * 2**-8 * float(size.max())
    assert not found["exponentials"][1][[10, 30]].any()


@pytest.mark.parametrize("rows", ["none", "all ignored"])
def test_no_row(rows: str, calls: list[int]) -> None:
    count = 0 if rows == "none" else 5
    hidden = torch.full((count, 8), torch.nan, dtype=BF16).requires_grad_()
    weight = torch.ones(13, 8, dtype=BF16).requires_grad_()
    with pk.implementation("triton"):
        loss = pk.linear_cross_entropy(hidden, weight, torch.full((count,), -100))
        loss.backward()
    assert float(loss.detach()) == 0.0
    assert not hidden.grad.any() and not weight.grad.any()


def test_a_confident_rows_gradient_keeps_its_digits() -> None:
    """The target takes all but 1e-3 of the mass: 1 - P is a small difference of rounded parts."""
    g = torch.Generator().manual_seed(0)
    weight = (0.2 * torch.randn(300, 64, generator=g)).to(BF16)
    target = torch.randint(300, (32,), generator=g)
    hidden = (4.0 * weight[target].float() + 0.1 * torch.randn(32, 64, generator=g)).to(BF16)

    def call(h: Tensor, w: Tensor, _: Tensor | None) -> Tensor:
        return pk.linear_cross_entropy(h, w, target, reduction="none")

    got = outcome(call, hidden, weight, implementation="triton", mib=MIB)
    exact = outcome(call, hidden.double(), weight.double(), implementation="naive")
    eager = outcome(call, hidden, weight, implementation="naive")
    assert 1e-5 < float(exact["value"].median()) < 1e-1
    error, theirs = (
        ((found["by_hidden"].double() - exact["by_hidden"]).norm(dim=1))
        / exact["by_hidden"].norm(dim=1)
        for found in (got, eager)
    )
    assert float(error.max()) <= 2 * float(theirs.max()) + FLOOR[BF16]


# (name of the target, what is asked for) -> whether chunks are of exponentials.
TAKEN = {
    ("sm_90", "cross-entropy"): True,
    ("sm_90", "fp16"): False,
    ("sm_90", "fp32"): False,
    ("sm_90", "smoothed and capped"): False,
    ("sm_90", "log-sum-exp"): False,
    ("sm_80", "cross-entropy"): False,
    ("gfx942", "cross-entropy"): False,
}


@pytest.mark.parametrize("given", TAKEN, ids=str)
def test_where_chunks_are_of_exponentials(given: tuple[str, str]) -> None:
    target, asked = given
    dtype = {"fp16": torch.float16, "fp32": torch.float32}.get(asked, BF16)
    term = TermRequest(kind="logsumexp" if asked == "log-sum-exp" else "cross_entropy")
    head = Head(torch.ones(5, 4, dtype=dtype))
    if asked == "smoothed and capped":
        term = TermRequest(kind="cross_entropy", label_smoothing=0.1)
        head = head._replace(softcap=3.0)
    with interpreting(TARGETS[target]):
        got = takes_exponentials(torch.ones(2, 4, dtype=dtype), head, torch.ones(2), term, None)
    assert got == TAKEN[given]


@pytest.mark.parametrize(("rows", "taken"), [(256, False), (476, True)])
def test_few_rows_take_logits(rows: int, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 x 476 x 4096 x 128256 is the first product past 1e12: two launches fewer below it."""
    monkeypatch.undo()  # the default of the package, not of these tests
    hidden, head = meta(rows, 4096), Head(meta(128256, 4096))
    term = TermRequest(kind="cross_entropy")
    with recording(TARGETS["sm_90"]):
        assert takes_exponentials(hidden, head, torch.ones(2), term, None) == taken


# (N, most rows within the limit) -> M, and M where chunks should be few
CHUNK_ROWS = {
    (16384, 4100): (2048, 4096),
    (16384, 9000): (2048, 8192),
    (16384, 1100): (1024, 1024),
    (8192, 1930): (1664, 1664),  # five about equal chunks, not four of 1920 and a rest
    (2500, 4096): (2048, 2560),
    (300, 1024): (384, 384),  # all in one chunk of whole tiles
    (100, 1024): (100, 100),
    (500, 90): (90, 90),
}


@pytest.mark.parametrize("given", CHUNK_ROWS, ids=str)
def test_rows_of_chunk(given: tuple[int, int]) -> None:
    usual, long = CHUNK_ROWS[given]
    assert rows_of_chunk(*given) == usual
    assert rows_of_chunk(*given, favour_long=True) == long


@pytest.mark.parametrize("over", [None, "selection", "vocabulary"])
def test_a_chunk_adds_four_launches_and_the_kl_one_for_all(over: str | None) -> None:
    """3 chunks of 128 rows; the vendor's products are not among the launches."""
    with recording(TARGETS["sm_90"]) as launches:
        head_loss(
            meta(384, 128),
            Head(meta(5003, 128)),
            meta(384, dtype=torch.int64),
            None if over is None else meta(50, dtype=torch.int64),
            term=TermRequest(kind="cross_entropy"),
            kl=None if over is None else kl_of_states(384, 50, over),
            needs_grad=(True, True, False),
            limit_bytes=1_600_000,  # 147 rows, or 130 beside the KL of all rows: whole tiles of 128
            num_rows=384,
        )
    found = Counter(launch.kernel.fn.__name__.strip("_") for launch in launches)
    by_chunk = ("exponential_chunk", "redo_rows", "finish_chunk", "scale_states")
    expected = Counter({f"{name}_kernel": 3 for name in by_chunk} | {"target_logits_kernel": 1})
    if over is not None:
        expected["pact_kl_kernel" if over == "selection" else "mixed_target_kernel"] = 1
    assert found == expected
