"""The fused KL against the dense formula in float64, from states or logits, at the edges of tiles.

Errors follow the rule of `precision`; rows whose top-p counts lie near a jump are never drawn.

Legend: N rows, D hidden size, D' that of the reference, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.chunked.selection_kl import SelectionKl
from pact_kernels.chunked.spec import KlSpec
from pact_kernels.kernels.kl_rows import KlRows, StudentHead
from pact_kernels.kernels.pact_kl import KlOut, fits_registers
from pact_kernels.kernels.runtime import TARGETS, Launch, interpreting, recording
from pact_kernels.kernels.selection_kl import LEAST_SLAB_ROWS, selection_kl
from pact_kernels.naive.pact_kl import pact_kl_rows
from tests.kernels.poison import poison
from tests.kernels.precision import assert_at_most_twice
from tests.kernels.rounding import round_to_nearest
from tests.ops.compare import assert_same, outcome
from tests.ops.test_precision import near_a_jump


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    round_to_nearest(monkeypatch)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])


@dataclass(kw_only=True)
class Case:
    """Inputs in float64, whose values `dtype` holds exactly."""

    dtype: torch.dtype
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    token_ids: Tensor  # (K,)
    token_weights: Tensor  # (K,)
    step: Tensor  # (N,)
    states: pk.ReferenceStates  # (N, D'), (N, D'), (V, D'), (V,)
    logits: pk.ReferenceLogits  # (N, K) twice
    row_weight: Tensor  # (N,)
    head: dict[str, Any]

    def outcome(self, implementation: str, *, trained: bool = True, **options: Any) -> Any:
        """The KL and its gradients: in float64 if "exact", else in the case's dtype.

        A sum, unless told: rows by themselves run the kernel twice.
        """
        exact = implementation == "exact"
        dtype = torch.float64 if exact else self.dtype
        reference: Any = self.states if options.pop("source", "states") == "states" else self.logits
        reference = type(reference)(*(None if t is None else t.to(dtype) for t in reference))
        row_weight = self.row_weight if options.pop("weighted", False) else None
        options = {"reduction": "sum", **options}

        def call(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return pk.pact_kl(
                hidden,
                weight,
                self.token_ids,
                self.token_weights.to(dtype),
                self.step,
                reference,
                row_weight=row_weight,
                bias=bias,
                **self.head,
                **options,
            )

        leaves = (t.to(dtype) for t in (self.hidden, self.weight, self.bias))
        implementation = "naive" if exact else implementation
        return outcome(call, *leaves, implementation=implementation, trained=trained)

    def check(self, **options: Any) -> dict[str, Tensor]:
        """The kernels against eager torch; returns what the kernels gave."""
        got = self.outcome("triton", **options)
        eager, exact = (self.outcome(name, **options) for name in ("naive", "exact"))
        assert_at_most_twice(got, eager, exact, self.dtype)
        return got


def case(
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 18,  # in fp32 a tile of 16 rows and a ragged one; in 16 bits a part of a tile
    width: int = 72,  # a step of 64 and a ragged one, in rows of whole 16 bytes
    selected: int = 11,
    reference_width: int = 40,  # another model's
    *,
    gate: pk.GateConfig | None = pk.GateConfig(),  # noqa: B008  (frozen)
    **head: Any,
) -> Case:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(dtype).double()

    drawn = 2 * rows + 20  # rows near a jump are left out
    vocabulary = selected + 5
    hidden, weight = randn(drawn, width), randn(vocabulary, width, scale=2 * width**-0.5)
    full, post = randn(drawn, reference_width), randn(drawn, reference_width)
    other = randn(vocabulary, reference_width, scale=2 * reference_width**-0.5)
    bias, other_bias = randn(vocabulary), randn(vocabulary)
    ids = torch.randperm(vocabulary, generator=g)[:selected]
    with pk.implementation("naive"):
        student = pk.selected_logits(hidden, weight, ids, bias=bias, **head)
        known = [
            pk.selected_logits(s, other, ids, bias=other_bias, **head).to(dtype).double()
            for s in (full, post)
        ]
        exact_post = pk.selected_logits(post, other, ids, bias=other_bias, **head)
    clear = torch.ones(drawn, dtype=torch.bool)
    if gate is not None:
        clear = ~torch.stack([near_a_jump(x, gate) for x in (student, known[1], exact_post)]).any(0)
    at = clear.nonzero().squeeze(1)[:rows]
    assert at.numel() == rows
    weights = randn(selected) + 0.5
    weights[0] = 1.0  # one positive at least
    return Case(
        dtype=dtype,
        hidden=hidden[at],
        weight=weight,
        bias=bias,
        token_ids=ids,
        token_weights=weights.to(dtype).double(),
        step=torch.arange(rows) % 30,  # well past prefix and decay
        states=pk.ReferenceStates(full[at], post[at], other, other_bias),
        logits=pk.ReferenceLogits(known[0][at], known[1][at]),
        row_weight=torch.rand(rows, generator=g) + 0.5,
        head=head,
    )


@by_dtype
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("gate", [pk.GateConfig(), None], ids=["gate", "no gate"])
def test_errors(gate: pk.GateConfig | None, source: str, dtype: torch.dtype) -> None:
    """Of each row, by a trained head; cached logits are of the same dtype, 16 bits among them."""
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


def rows_of(c: Case, dtype: torch.dtype, **given: Any) -> tuple[Any, KlSpec]:
    """Positional arguments and spec of the launchers, the reference as states."""
    full, post, other, other_bias = (t.to(dtype) for t in c.states)
    spec = {
        "token_weights": c.token_weights.to(dtype),
        "step": c.step,
        "reference_full": full,
        "reference_post": post,
        "reference_weight": other[c.token_ids],
        "reference_bias": other_bias[c.token_ids],
        "full_lse": None,
        "post_lse": None,
        "row_weight": None,
        "gate": pk.GateConfig(),
        "over": "selection",
        "temperature": 2.0,
        "kl_weight": 1.0,
    }
    head = c.weight[c.token_ids].to(dtype), c.bias[c.token_ids].to(dtype)
    return (c.hidden.to(dtype), *head), KlSpec(**{**spec, **given})


def selection(
    c: Case,
    *,
    trained: bool,
    row_grad: Tensor | None = None,
    limit_bytes: int = 1,
    **given: Any,
) -> SelectionKl:
    """The launcher itself; a keyword more replaces part of the spec."""
    args, kl = rows_of(c, c.dtype, **given)
    return selection_kl(
        *args,
        kl=kl,
        softcap=None,
        logit_scale=1.0,
        row_grad=row_grad,
        wanted=(True, trained, trained),
        limit_bytes=limit_bytes,
    )


def test_the_gradient_of_a_plain_sum() -> None:
    """Its row_grad is one number, expanded: a stride of 0."""
    c = case()
    for trained in (False, True):
        expanded = selection(c, trained=trained, row_grad=torch.ones(()).expand(18))
        assert_same(expanded._asdict(), selection(c, trained=trained)._asdict())


def test_slabs_of_a_trained_head() -> None:
    """Its gradient of (M, K) logits asks for slabs; a frozen head's rows come in one launch."""
    c = case(rows=LEAST_SLAB_ROWS + 2)
    sliced, whole = selection(c, trained=True), selection(c, trained=True, limit_bytes=2**20)
    assert_same(sliced._asdict(), whole._asdict(), 1e-6)
    assert [len(recorded(c, trained=trained, limit_bytes=1)) for trained in (False, True)] == [1, 2]


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
    assert frozen.arguments["gradient_ptr"] is None
    (trained,) = recorded(c, trained=True)
    assert trained.arguments["gradient_ptr"].shape == (18, 11)


def test_no_gradient_is_written_where_none_is_wanted() -> None:
    c = case()
    args, kl = rows_of(c, c.dtype)
    options: dict[str, Any] = {"kl": kl, "softcap": None, "logit_scale": 1.0, "row_grad": None}
    value = selection_kl(*args, **options, wanted=(False, False, False), limit_bytes=1)
    assert value.grad_hidden.numel() == 0
    assert torch.equal(value.kl, selection(c, trained=False).kl)


def recorded(
    c: Case,
    target: str = "sm_90",
    *,
    trained: bool = False,
    limit_bytes: int = 2**20,
    **given: Any,
) -> list[Launch]:
    """The launches of the launcher on meta tensors; a keyword more replaces part of the spec."""
    args, kl = rows_of(c, c.dtype, **given)

    def nowhere(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    fields = {n: nowhere(v) if isinstance(v, Tensor) else v for n, v in vars(kl).items()}
    with recording(TARGETS[target]) as launches:
        selection_kl(
            *map(nowhere, args),
            kl=KlSpec(**fields),
            softcap=None,
            logit_scale=1.0,
            row_grad=None,
            wanted=(True, trained, trained),
            limit_bytes=limit_bytes,
        )
    return launches


# (D, D', target) and which of the states and heads are fetched through descriptors.
WAYS: dict[str, tuple[int, int, str, tuple[bool, bool, bool, bool]]] = {
    "rows of 48 and 80 bytes": (24, 40, "sm_90", (True, True, True, True)),
    "40 bytes are no multiple of 16": (20, 40, "sm_90", (False, False, True, True)),
    "10 bytes of the reference": (24, 5, "sm_90", (True, True, False, False)),
    "Blackwell": (24, 40, "sm_100", (True, True, True, True)),
    "Ampere has none": (24, 40, "sm_80", (False, False, False, False)),
    "AMD has none": (24, 40, "gfx942", (False, False, False, False)),
}


@pytest.mark.parametrize("name", WAYS)
def test_descriptors_and_pointers(name: str) -> None:
    """Both ways give the same values, and each is taken where it should be."""
    width, reference_width, target, expected = WAYS[name]
    c = case(rows=9, width=width, reference_width=reference_width)
    (launch,) = recorded(c, target)
    flags = ("STUDENT", "WEIGHT", "REFERENCE", "REFERENCE_WEIGHT")
    assert tuple(launch.arguments[f"{flag}_DESCRIPTOR"] for flag in flags) == expected
    with interpreting(TARGETS[target]):
        c.check()


def test_one_context_without_a_descriptor_takes_the_other_along() -> None:
    c = case()
    post = torch.zeros(18, 45, dtype=c.dtype)[:, :40]  # rows of 90 bytes
    (launch,) = recorded(c, reference_post=post)
    assert not launch.arguments["REFERENCE_DESCRIPTOR"]
    assert launch.arguments["REFERENCE_WEIGHT_DESCRIPTOR"]
    post.copy_(c.states.post_hidden)
    mixed, whole = selection(c, trained=False, reference_post=post), selection(c, trained=False)
    assert_same(mixed._asdict(), whole._asdict(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
def test_configurations_of_every_target(target: str, dtype: torch.dtype) -> None:
    """Even widths, and odd ones, which pointers without a descriptor read through masks."""
    with interpreting(TARGETS[target]):
        case(dtype, width=128, reference_width=64, selected=20).check()
        case(dtype, width=67, selected=20).check(trained=False)


def strided(tensor: Tensor, way: str) -> Tensor:
    """Equal values: every second column or row of a wider one, or columns first."""
    if way == "columns first":
        return tensor.T.contiguous().T
    wide = torch.full([2 * size for size in tensor.shape], 77, dtype=tensor.dtype)
    at = tuple(slice(1, None, 2) for _ in tensor.shape)  # not aligned to 16 bytes either
    if way == "padded rows":
        at = (slice(None, tensor.shape[0]), slice(3, 3 + tensor.shape[1]))
    wide[at] = tensor
    return wide[at]


@pytest.mark.parametrize("way", ["every second", "padded rows", "columns first"])
@pytest.mark.parametrize("source", ["states", "logits"])
def test_strides(source: str, way: str) -> None:
    """Nothing needs to be contiguous."""
    c = case()
    expected = c.outcome("triton", source=source, weighted=True)
    c.hidden, c.weight = c.hidden.to(c.dtype), c.weight.to(c.dtype)
    moved = [strided(t.to(c.dtype), way) for t in (c.hidden, c.weight)]
    references: Any = [c.states, c.logits]
    for at, reference in enumerate(references):
        references[at] = type(reference)(
            *(t if t is None or t.dim() == 1 else strided(t.to(c.dtype), way) for t in reference)
        )
    c.states, c.logits = references
    (c.hidden, c.weight), c.bias = moved, strided(c.bias.to(c.dtype), "every second")
    c.step, c.row_weight = strided(c.step, "every second"), strided(c.row_weight, "every second")
    c.token_ids = strided(c.token_ids, "every second")
    assert not any(t.is_contiguous() for t in (c.hidden, c.weight, c.bias, c.step, c.token_ids))
    assert_same(c.outcome("triton", source=source, weighted=True), expected, 1e-6)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("selected", [11, 300])
def test_poisoned_buffers(selected: int, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a fresh buffer holds, none of it reaches a result."""
    c = case(rows=9, width=24, selected=selected)
    clean = c.outcome("triton", trained=trained, weighted=True)
    poison(monkeypatch)
    dirty = c.outcome("triton", trained=trained, weighted=True)
    assert all(torch.equal(dirty[name], value) for name, value in clean.items())


def test_a_rows_bits_do_not_depend_on_the_others() -> None:
    c = case(torch.float32)
    whole = selection(c, trained=False)
    full, post, *head = c.states
    at = slice(17, 18)  # another place of another tile
    c.hidden, c.step = c.hidden[at], c.step[at]
    c.states = pk.ReferenceStates(full[at], post[at], *head)
    alone = selection(c, trained=False)
    for name in ("kl", "gate", "grad_hidden"):
        assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[17]), name


VOCABULARY = 60  # the states are the logits themselves, by a head of the identity


def vocabulary_rows(
    c: Case, source: str, gate: pk.GateConfig | None, ignored: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the kernel fills over the vocabulary, by its launcher."""
    full, post = (t.to(dtype) for t in c.states[:2])
    ids, states = c.token_ids, source == "states"
    kl = KlSpec(
        token_weights=c.token_weights,
        step=c.step,
        reference_full=full if states else full[:, ids],
        reference_post=post if states else post[:, ids],
        reference_weight=c.weight[ids].to(dtype) if states else None,
        reference_bias=None,
        full_lse=c.states.full_hidden.logsumexp(-1).float(),
        post_lse=c.states.post_hidden.logsumexp(-1).float(),
        row_weight=c.row_weight,
        gate=gate,
        over="vocabulary",
        temperature=1.0,
        kl_weight=1.7,
    )
    num_rows = c.hidden.shape[0]
    rows = KlRows(kl, StudentHead(c.weight[ids].to(dtype), None, None, 1.0), None, num_rows)
    kl_out, gate_out, share = torch.full((3, num_rows), torch.nan)
    out = KlOut(kl_out, gate_out, None, torch.full((num_rows, ids.numel()), torch.nan), share)
    rows(
        c.hidden.to(dtype),
        slice(0, num_rows),
        out,
        lse=c.hidden.logsumexp(-1).float(),
        target=torch.where(ignored, -1, 0),
        ignore_index=-1,
    )
    # Their sum is the gradient by all logits: share * P, and the sparse entries on the tokens.
    gradient = share.double()[:, None] * c.hidden.softmax(-1)
    assert out.gradient is not None
    gradient[:, ids] += out.gradient
    return {"kl": kl_out, "gate": gate_out, "gradient": gradient}


# A rest of 49 tokens, and of one.
@pytest.mark.parametrize(
    "gate, selected", [(pk.GateConfig(), 11), (pk.GateConfig(), 59), (None, 11)], ids=str
)
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_over_the_vocabulary(
    dtype: torch.dtype, source: str, gate: pk.GateConfig | None, selected: int
) -> None:
    """Logits that the dtype holds: the products are exact, and errors those of fp32."""
    c = case(dtype, width=VOCABULARY, reference_width=VOCABULARY, selected=selected)
    full, post, *_ = c.states
    c.weight = torch.eye(VOCABULARY, dtype=torch.float64)
    c.token_ids = c.token_ids.argsort()  # a permutation of the first K
    at = ~(
        near_a_jump(c.hidden[:, c.token_ids], pk.GateConfig())
        | near_a_jump(post[:, c.token_ids], pk.GateConfig())
    )
    c.hidden, c.step, c.row_weight = c.hidden[at], c.step[at], c.row_weight[at]
    c.states = pk.ReferenceStates(full[at], post[at], c.weight)
    ignored = torch.arange(c.step.numel()) % 5 == 2
    got = vocabulary_rows(c, source, gate, ignored, dtype)
    z = c.hidden.clone().requires_grad_()
    kl, c_gate = pact_kl_rows(
        z,
        c.weight,
        c.token_ids,
        c.token_weights,
        c.step,
        c.states,
        gate=gate,
        temperature=1.0,
        over="vocabulary",
        row_weight=c.row_weight.double(),
    )
    (1.7 * kl).sum().backward()
    # Of a row that is ignored nothing is left.
    keep = (~ignored).double()
    expected = {"kl": kl.detach() * keep, "gate": c_gate * keep, "gradient": z.grad * keep[:, None]}
    # Of one token the rest is 0.001 here and there: a difference from 1, it keeps 4 digits.
    atol = 4e-6 if selected == 11 else 2e-5
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=atol)


def test_row_tensors_of_another_length_are_refused() -> None:
    c = case(torch.float32)
    c.step = c.step[:17]
    with pytest.raises(ValueError, match="one entry per row, 18 .* got 17"):
        selection(c, trained=False)
