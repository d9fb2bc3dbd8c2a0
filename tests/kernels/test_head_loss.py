"""The chunk loop on the kernels against the pure-torch one in float64: rows, slabs, gradients.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens, M slab rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.chunked import head_loss as chunked
from pact_kernels.chunked.head_loss import HeadLoss
from pact_kernels.chunked.spec import HeadSpec, KlSpec
from pact_kernels.kernels import head_loss as kernels
from pact_kernels.kernels.head_loss import slab_rows
from pact_kernels.kernels.runtime import TARGETS, Launch, recording
from tests.kernels.poison import poison
from tests.kernels.slab import head_spec
from tests.ops.compare import relative_error
from tests.ops.problem import Problem, problem
from tests.ops.test_precision import near_a_jump

ROWS = 37
WIDTH = 19  # no multiple of anything
VOCABULARY = 301
PLENTY = 2**24
"""A workspace in bytes that takes every row in one slab."""
TOLERANCE = 2e-6
ALL = (True, True, True)
NONE = (False, False, False)


def rounded(**sizes: Any) -> Problem:
    """A problem in float64 whose values fp32 holds, no row of it near a jump of its counts."""
    p = problem(**{"rows": ROWS, "hidden": WIDTH, "vocabulary": VOCABULARY, **sizes})
    for name in ("hidden", "weight", "bias", "token_weights", "row_weight"):
        setattr(p, name, getattr(p, name).float().double())
    p.states = pk.ReferenceStates(*(t.float().double() for t in p.states[:3]), p.bias.flip(0))
    kept = p.target != -100
    student = p.hidden[kept] @ p.weight[p.token_ids].T + p.bias[p.token_ids]
    _, post, head, bias = p.states
    assert post is not None and bias is not None
    other = post @ head[p.token_ids].T + bias[p.token_ids]
    assert not (near_a_jump(student, pk.GateConfig()) | near_a_jump(other, pk.GateConfig())).any()
    return p


def spread(rows: Tensor, kept: Tensor) -> Tensor:
    """One entry per position instead of one per row; NaN where ignored, or a step long past."""
    poison_value = torch.nan if rows.is_floating_point() else 10**6
    out = torch.full((kept.numel(), *rows.shape[1:]), poison_value, dtype=rows.dtype)
    out[kept] = rows
    return out


def kl_spec(p: Problem, over: str, dtype: torch.dtype, *, by_position: bool = False) -> KlSpec:
    """The whole KL: gate, row weights, a kl_weight, a reference in states."""
    full, post, weight, bias = p.states
    assert post is not None and bias is not None
    lse = [torch.logsumexp(s @ weight.T + bias, -1).to(dtype) for s in (full, post)]
    rows = {
        "step": p.step,
        "reference_full": full.to(dtype),
        "reference_post": post.to(dtype),
        "full_lse": lse[0],
        "post_lse": lse[1],
        "row_weight": p.row_weight.to(dtype),
    }
    if by_position:
        rows = {name: spread(tensor, p.target != -100) for name, tensor in rows.items()}
    return KlSpec(
        token_weights=p.token_weights.to(dtype),
        reference_weight=weight[p.token_ids].to(dtype),
        reference_bias=bias[p.token_ids].to(dtype),
        gate=pk.GateConfig(),
        over=over,  # type: ignore[arg-type]
        temperature=2.0 if over == "selection" else 1.0,
        kl_weight=1.7,
        **rows,
    )


def run(
    p: Problem,
    over: str | None,
    *,
    exact: bool = False,
    by_position: bool = False,
    spec: HeadSpec | None = None,
    target: bool = True,
    wanted: tuple[bool, bool, bool] = ALL,
    row_grad: Tensor | None = None,
    limit_bytes: int = PLENTY,
    num_rows: int | None = None,
) -> HeadLoss:
    """The kernels' loop in fp32, or with `exact` the pure-torch one in float64."""
    dtype, module = (torch.float64, chunked) if exact else (torch.float32, kernels)
    return module.head_loss(
        p.hidden.to(dtype),
        p.weight.to(dtype),
        p.target if target else None,
        p.bias.to(dtype),
        None if over is None else p.token_ids,
        spec=spec or head_spec(label_smoothing=0.1, z_loss=0.01),
        kl=None if over is None else kl_spec(p, over, dtype, by_position=by_position),
        row_grad=None if row_grad is None else row_grad.to(dtype),
        wanted=wanted,
        limit_bytes=limit_bytes,
        num_rows=num_rows,
    )


def assert_near(got: HeadLoss, exact: HeadLoss, tolerance: float = TOLERANCE) -> None:
    for name, value in exact._asdict().items():
        found = getattr(got, name)
        assert found.shape == value.shape, name
        assert found.dtype == (torch.int64 if name == "num_rows" else torch.float32), name
        error = relative_error(found, value)
        assert error <= tolerance, f"{name}: {error:.1e}"


overs = pytest.mark.parametrize("over", [None, "selection", "vocabulary"])
IGNORED = {"some ignored": 0.4, "none ignored": 0.0, "all ignored": 1.0}


@pytest.mark.parametrize("ignored", IGNORED)
@overs
def test_targets(over: str | None, ignored: str) -> None:
    p = rounded(ignored=IGNORED[ignored])
    got = run(p, over)
    assert_near(got, run(p, over, exact=True))
    assert int(got.num_rows) == int((p.target != -100).sum())
    assert not got.grad_hidden[p.target == -100].any()
    assert (ignored == "all ignored") != bool(got.term.any())


@pytest.mark.parametrize("term", ["logsumexp", "none"])
@overs
def test_without_targets_every_position_is_a_row(over: str | None, term: str) -> None:
    p = rounded(ignored=0.0)
    options: dict[str, Any] = {"spec": head_spec(term=term), "target": False}
    got = run(p, over, **options)
    assert_near(got, run(p, over, exact=True, **options))
    assert int(got.num_rows) == ROWS


@overs
def test_rows_that_the_host_knows_the_number_of(over: str | None) -> None:
    p = rounded()
    known = run(p, over, num_rows=p.step.numel())
    for a, b in zip(known, run(p, over), strict=True):
        assert torch.equal(a, b)


@overs
def test_rows_that_stay_where_they_are(over: str | None) -> None:
    """N = R: ignored rows are computed with. Their references are NaN, and nothing of it shows."""
    p = rounded()
    static = run(p, over, by_position=True, num_rows=ROWS)
    assert_near(static, run(p, over, exact=True, by_position=True))
    ignored = p.target == -100
    for name in ("term", "kl", "gate", "grad_hidden"):
        assert not getattr(static, name)[ignored].any(), name
    assert int(static.num_rows) == int((~ignored).sum())


def test_another_number_of_rows_is_refused_on_a_cpu() -> None:
    p = rounded()
    with pytest.raises(ValueError, match="one entry per row"):
        run(p, None, num_rows=p.step.numel() + 1)


def test_row_tensors_of_another_length_are_refused() -> None:
    p = rounded()
    p.step = p.step[1:]
    with pytest.raises(ValueError, match=f"one per position, {ROWS}"):
        run(p, "selection")


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_row_tensors_with_an_entry_per_position(over: str) -> None:
    """Equal bits: the same rows, and no others, are in the same products."""
    p = rounded()
    for a, b in zip(run(p, over, by_position=True), run(p, over), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The slab (M, V) of every launch of the row losses."""
    seen: list[Tensor] = []
    original = kernels.launch_slab_loss

    def recorded(slab: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(slab)
        original(slab, *args, **kwargs)

    monkeypatch.setattr(kernels, "launch_slab_loss", recorded)
    return seen


@pytest.mark.parametrize("gathered", [False, True], ids=["all rows", "kept rows"])
@overs
def test_slabs_and_a_ragged_one(over: str | None, gathered: bool, slabs: list[Tensor]) -> None:
    """In a workspace of some ten rows; one buffer serves them all."""
    p = rounded(ignored=0.4 if gathered else 0.0)
    limit = 13_000 if gathered else 20_000
    factor = torch.linspace(-1.0, 2.0, ROWS)
    got = run(p, over, limit_bytes=limit, row_grad=factor)
    assert_near(got, run(p, over, exact=True, row_grad=factor))
    rows = [slab.shape[0] for slab in slabs]
    assert sum(rows) == p.step.numel()
    assert len(rows) >= 3 and len(set(rows[:-1])) == 1 and rows[-1] < rows[0]
    assert {slab.data_ptr() for slab in slabs} == {slabs[0].data_ptr()}
    assert slabs[0].untyped_storage().nbytes() <= limit
    assert slabs[0].stride() == (304, 1)  # rows start at multiples of 16 bytes


def test_slabs_of_one_row_however_small_the_workspace(slabs: list[Tensor]) -> None:
    p = rounded(rows=5, ignored=0.0)
    assert_near(run(p, "selection", limit_bytes=1), run(p, "selection", exact=True))
    assert [slab.shape[0] for slab in slabs] == [1] * 5


@pytest.mark.parametrize("dtype, stride", [(torch.bfloat16, 304), (torch.float32, 304)])
def test_rows_of_a_slab_start_at_multiples_of_16_bytes(
    dtype: torch.dtype, stride: int, slabs: list[Tensor]
) -> None:
    hidden, weight = torch.ones(2, 4, dtype=dtype), torch.ones(VOCABULARY, 4, dtype=dtype)
    kernels.head_loss(
        hidden,
        weight,
        None,
        None,
        None,
        spec=head_spec(term="logsumexp"),
        kl=None,
        row_grad=None,
        wanted=(True, False, False),
        limit_bytes=PLENTY,
    )
    assert slabs[0].stride() == (stride, 1)


# (N, most rows within the limit) -> M: whole GEMM tiles of 128 rows where they fit.
SLAB_ROWS = {
    (0, 5): 1,
    (37, 0): 1,
    (37, 10): 10,  # four slabs of 10, 10, 10, 7
    (37, 36): 19,  # two, about equal
    (37, 1000): 128,  # all in one: the buffer has 37 rows
    (129, 128): 128,
    (300, 130): 128,  # 130 are cut to 128
    (1000, 300): 256,  # four, of 250 rows rounded up
    (513, 400): 384,  # two, of 257 rounded up
    (4096, 1024): 1024,
}


@pytest.mark.parametrize("given", SLAB_ROWS, ids=str)
def test_slab_rows(given: tuple[int, int]) -> None:
    assert slab_rows(*given) == SLAB_ROWS[given]


@pytest.mark.parametrize(
    "wanted", [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
)
def test_gradients_that_are_wanted_alone(wanted: tuple[bool, bool, bool]) -> None:
    """One that is not is empty, and the others are the same bits."""
    p = rounded(rows=9)
    got, whole = run(p, None, wanted=wanted), run(p, None)
    for name, want in zip(("grad_hidden", "grad_weight", "grad_bias"), wanted, strict=True):
        gradient = getattr(got, name)
        assert torch.equal(gradient, getattr(whole, name)) if want else gradient.numel() == 0
    assert torch.equal(got.term, whole.term)


@pytest.mark.parametrize("in_place", [False, True], ids=["kept rows", "rows in place"])
@pytest.mark.parametrize("term", ["cross_entropy", "logsumexp"])
def test_streaming_gives_the_slabs_values(term: str, in_place: bool, slabs: list[Tensor]) -> None:
    """Without gradients there is no slab."""
    p = rounded()
    num_rows = ROWS if in_place else None
    spec = head_spec(term=term, z_loss=0.01 if term == "cross_entropy" else 0.0, softcap=4.0)
    streamed = run(p, None, spec=spec, wanted=NONE, num_rows=num_rows)
    assert not slabs
    assert_near(streamed, run(p, None, spec=spec, wanted=NONE, exact=True))
    in_slabs = run(p, None, spec=spec, wanted=(True, False, False), num_rows=num_rows)
    assert slabs
    torch.testing.assert_close(streamed.term, in_slabs.term, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("ignored", [0.4, 0.0], ids=["kept rows", "all rows"])
def test_streaming_in_a_tiny_workspace(ignored: float) -> None:
    """Kept rows are gathered 128 at a time, however little room there is: 144 of 240 make two."""
    p = rounded(rows=240, vocabulary=67, ignored=ignored)
    assert kernels.ROW_MULTIPLE < p.step.numel() < 2 * kernels.ROW_MULTIPLE
    spec = head_spec()
    streamed = run(p, None, spec=spec, wanted=NONE, limit_bytes=1)
    assert_near(streamed, run(p, None, spec=spec, wanted=NONE, exact=True))


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_a_kl_without_gradients(over: str) -> None:
    p = rounded()
    got, whole = run(p, over, wanted=NONE), run(p, over)
    for name in ("term", "kl", "gate"):
        assert torch.equal(getattr(got, name), getattr(whole, name))


@overs
def test_more_selected_tokens_than_fit_in_registers(over: str | None) -> None:
    """In fp32 past 128: logits and KL in launches of their own, in three slabs."""
    p = rounded(rows=9, selected=150, ignored=0.0)
    assert_near(run(p, over, limit_bytes=14_000), run(p, over, exact=True))


@overs
def test_poisoned_buffers(over: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    p = rounded(rows=9)
    clean = run(p, over, limit_bytes=10_000), run(p, over, by_position=True, num_rows=9)
    poison(monkeypatch)
    dirty = run(p, over, limit_bytes=10_000), run(p, over, by_position=True, num_rows=9)
    for a, b in zip([*clean[0], *clean[1]], [*dirty[0], *dirty[1]], strict=True):
        assert torch.equal(a, b)


def test_strides() -> None:
    """Every second entry of vectors, a row_grad of one number expanded, a head column by column."""
    p = rounded(rows=9, ignored=0.0)
    options: dict[str, Any] = {"spec": head_spec(), "row_grad": torch.ones(9)}
    expected = run(p, "selection", **options), run(p, None, wanted=NONE, **options)
    for name in ("target", "step", "bias", "row_weight"):
        vector = getattr(p, name)
        vector = vector.float() if vector.is_floating_point() else vector
        setattr(p, name, torch.stack((vector, vector + 1), 1).reshape(-1)[::2])
    p.weight, p.hidden = (t.float().T.contiguous().T for t in (p.weight, p.hidden))
    options["row_grad"] = torch.ones(1).expand(9)
    strided = run(p, "selection", **options), run(p, None, wanted=NONE, **options)
    for got, same in zip(strided, expected, strict=True):
        assert_near(got, same, 1e-6)


NUM_ROWS = 1000
TOKENS = 5003
LIMIT_BYTES = 2 * NUM_ROWS * TOKENS // 5
"""A fifth of the logits in 16 bits."""


def recorded(over: str | None, *, num_tokens: int = 50, trained: bool = False) -> list[Launch]:
    """Launches on meta tensors, in the workspace LIMIT_BYTES."""

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    lse = meta(NUM_ROWS, dtype=torch.float32)
    kl = None
    if over is not None:
        kl = KlSpec(
            token_weights=meta(num_tokens),
            step=meta(NUM_ROWS, dtype=torch.int64),
            reference_full=meta(NUM_ROWS, 64),
            reference_post=meta(NUM_ROWS, 64),
            reference_weight=meta(num_tokens, 64),
            reference_bias=None,
            full_lse=lse,
            post_lse=lse,
            row_weight=None,
            gate=pk.GateConfig(),
            over=over,  # type: ignore[arg-type]
            temperature=2.0 if over == "selection" else 1.0,
            kl_weight=1.0,
        )
    with recording(TARGETS["sm_90"]) as launches:
        kernels.head_loss(
            meta(NUM_ROWS, 128),
            meta(TOKENS, 128),
            meta(NUM_ROWS, dtype=torch.int64),
            None,
            None if over is None else meta(num_tokens, dtype=torch.int64),
            spec=head_spec(),
            kl=kl,
            row_grad=None,
            wanted=(True, trained, False),
            limit_bytes=LIMIT_BYTES,
            num_rows=NUM_ROWS,
        )
    return launches


def names(launches: list[Launch]) -> Counter[str]:
    return Counter(launch.kernel.fn.__name__.strip("_") for launch in launches)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@overs
def test_no_launch_sees_more_of_the_logits_than_a_slab(over: str | None, trained: bool) -> None:
    slab_bytes = set()
    for launch in recorded(over, trained=trained):
        for name, value in launch.arguments.items():
            tensor = getattr(value, "base", value)  # behind a descriptor
            if isinstance(tensor, Tensor):
                assert tensor.untyped_storage().nbytes() <= LIMIT_BYTES, name
            if name == "slab_ptr":
                slab_bytes.add(value.untyped_storage().nbytes())
    (size,) = slab_bytes
    assert size > LIMIT_BYTES / 2  # the workspace is used, too


@pytest.mark.parametrize("num_tokens", [50, 300], ids=["fused", "in parts"])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_the_kl_adds_its_own_launches_and_no_product_with_the_vocabulary(
    over: str, num_tokens: int
) -> None:
    without, added = names(recorded(None)), names(recorded(over, num_tokens=num_tokens))
    num_slabs = without["slab_loss_kernel"]
    assert without == {"slab_loss_kernel": num_slabs, "slab_gradient_kernel": num_slabs}
    assert num_slabs >= 4
    expected = {"pact_kl_kernel": added["slab_loss_kernel"]}
    if num_tokens > 256:
        expected["selected_logits_kernel"] = 3 * added["slab_loss_kernel"]
    assert {name: count for name, count in added.items() if "slab" not in name} == expected
    assert added["slab_loss_kernel"] == added["slab_gradient_kernel"]
    # Its own workspace makes slabs a little smaller, hardly more of them.
    assert num_slabs <= added["slab_loss_kernel"] <= num_slabs + 2


def test_a_plain_loss_is_what_is_left_without_the_kl() -> None:
    """kl_weight 0: the value is reported, the gradient is the cross-entropy's."""
    p = rounded()
    spec = kl_spec(p, "vocabulary", torch.float32)
    args = (p.hidden.float(), p.weight.float(), p.target, p.bias.float(), p.token_ids)
    options: dict[str, Any] = {
        "spec": head_spec(),
        "row_grad": None,
        "wanted": ALL,
        "limit_bytes": PLENTY,
    }
    off = kernels.head_loss(*args, kl=replace(spec, kl_weight=0.0), **options)
    without = kernels.head_loss(*args[:4], None, kl=None, **options)
    assert bool(off.kl.any())
    for name in ("term", "grad_hidden", "grad_weight", "grad_bias"):
        torch.testing.assert_close(getattr(off, name), getattr(without, name), rtol=0, atol=1e-6)
