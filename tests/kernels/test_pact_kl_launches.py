"""How the fused KL fetches its tiles and fills its buffers: ways that give the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.kernels._launch.runtime import TARGETS, interpreting
from pact_kernels.kernels.selection_kl import LEAST_CHUNK_ROWS
from tests.kernels.kl_case import case, recorded, selection
from tests.kernels.poison import poison
from tests.kernels.rounding import round_to_nearest
from tests.ops.compare import assert_same

STEP = 2.0**-7
"""The step of bf16 next to 1. In another layout a product may add its terms in another order: the
sum, in fp32, may then round to the neighbour in bf16."""


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    round_to_nearest(monkeypatch)


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
    tile = launch.arguments["TILE"]
    found = [(t.left_descriptor, t.right_descriptor) for t in (tile.student, tile.reference)]
    assert sum(found, ()) == expected
    with interpreting(TARGETS[target]):
        c.check()


def test_one_context_without_a_descriptor_takes_the_other_along() -> None:
    c = case()
    post = torch.zeros(18, 45, dtype=c.dtype)[:, :40]  # rows of 90 bytes
    (launch,) = recorded(c, reference_post=post)
    tile = launch.arguments["TILE"].reference
    assert (tile.left_descriptor, tile.right_descriptor) == (False, True)
    post.copy_(c.states.post_hidden)
    mixed, whole = selection(c, trained=False, reference_post=post), selection(c, trained=False)
    assert_same(mixed._asdict(), whole._asdict(), STEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
def test_configurations_of_every_target(target: str, dtype: torch.dtype) -> None:
    """Even widths, and odd ones, which pointers without a descriptor read through masks."""
    with interpreting(TARGETS[target]):
        case(dtype, width=128, reference_width=64, selected=20).check()
        case(dtype, width=67, selected=20).check(trained=False)


def test_chunks_of_a_trained_head() -> None:
    """Its gradient of (M, K) logits asks for chunks; a frozen head's rows come in one launch."""
    c = case(rows=LEAST_CHUNK_ROWS + 2)
    sliced, whole = selection(c, trained=True), selection(c, trained=True, limit_bytes=2**20)
    assert_same(sliced._asdict(), whole._asdict(), STEP)
    assert [len(recorded(c, trained=trained, limit_bytes=1)) for trained in (False, True)] == [1, 2]


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
    assert_same(c.outcome("triton", source=source, weighted=True), expected, STEP)


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
    """In quarters and sixteenths, whose products' sums are exact: else the order of a product's
    additions shows, which differs by processor."""
    c = case(torch.float32)
    c.hidden, c.weight = (c.hidden * 4).round() / 4, (c.weight * 16).round() / 16
    states = (
        (t * steps).round() / steps for t, steps in zip(c.states, (4, 4, 16, 16), strict=True)
    )
    c.states = pk.ReferenceStates(*states)
    whole = selection(c, trained=False)
    full, post, *head = c.states
    at = slice(17, 18)  # another place of another tile
    c.hidden, c.step = c.hidden[at], c.step[at]
    c.states = pk.ReferenceStates(full[at], post[at], *head)
    alone = selection(c, trained=False)
    for name in ("kl", "gate", "grad_hidden"):
        assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[17]), name
