"""What the registry says of its peers: names, versions, settings, and why one does not run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import OPS, Case, make_inputs
from benchmarks.peers import peer as peers
from benchmarks.peers.calls import samples
from benchmarks.peers.composed import Composed
from benchmarks.peers.cross_entropies import (
    CutCrossEntropy,
    Liger,
    Quack,
    TorchLinearCrossEntropy,
    Trl,
)
from benchmarks.peers.peer import Peer, installed_version
from benchmarks.peers.registry import CROSS_ENTROPIES, PEERS, peers_for
from benchmarks.peers.released import Released
from tests.benchmarks.peers.judging import BASE, CASES, CPU

CUDA = torch.device("cuda")
# Aligned as kernels in 16 bits want it: 512 rows of 1024.
GPU_CASE = Case(
    op="linear_cross_entropy",
    sequences=2,
    length=512,
    hidden=64,
    vocabulary=49152,
    dtype="bfloat16",
    prompt_share=0.5,
)
OTHERS = [peer for peer in PEERS if peer.version() != torch.__version__ and peer is not PEERS[0]]


def test_names_are_unique_and_the_first_is_ours() -> None:
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    assert names[:2] == ["pact-kernels", "eager"]


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_its_peers(op: str) -> None:
    names = [peer.name for peer in peers_for(replace(BASE, op=op))]
    assert names[:3] == ["pact-kernels", "eager", "torch.compile"]
    assert ("released" in names) == (op == "pact_loss")
    assert ("Liger" in names) == (op == "linear_cross_entropy")


def test_a_peer_without_the_op_says_so() -> None:
    for peer in PEERS:
        for op in set(OPS) - set(peer.ops):
            assert peer.unavailable(replace(BASE, op=op), CPU) == f"it has no {op}"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed_version", lambda distribution: None)
    found = {peer.name: peer.unavailable(replace(BASE, op=peer.ops[0]), CPU) for peer in PEERS}
    assert found["cut-cross-entropy"] == "cut-cross-entropy is not installed"
    assert found["Liger"] == found["Liger full-vocabulary KL"] == "liger-kernel is not installed"
    assert found["quack"] == "quack-kernels is not installed"
    assert found["TRL"] == found["TRL full-vocabulary KL"] == "trl is not installed"
    assert PEERS[0].version() == "not installed, from its source"
    assert all(peer.version() is None for peer in (*CROSS_ENTROPIES, *PEERS[-2:]))
    alone = replace(BASE, op="pact_loss")
    composed = next(peer for peer in PEERS if isinstance(peer, Composed))
    assert composed.unavailable(alone, CPU) == "no peer's cross-entropy runs here"


def test_each_sequence_is_a_sample() -> None:
    case = replace(BASE, length=6)  # a prompt and an answer of 3
    assert samples(case, make_inputs(case)).tolist() == [0, 0, 0, 1, 1, 1]


def test_versions_are_of_what_is_installed() -> None:
    assert installed_version("torch") is not None
    assert all(peer.version() for peer in PEERS[:3])
    assert installed_version("no-such-distribution") is None


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_settings_can_be_written_down_and_are_distinct(peer: Peer) -> None:
    for case in CASES:
        if case.op in peer.ops and peer.unavailable(case, CPU) is None:
            written = [json.dumps(dict(setting)) for setting in peer.settings(case, CPU)]
            assert len(set(written)) == len(written)
            assert [json.loads(each) for each in written] == peer.settings(case, CPU)


def test_prompts_are_given_to_peers_that_ignore_targets_and_kept_from_them() -> None:
    without = replace(BASE, prompt_share=0.0)
    for peer in (TorchLinearCrossEntropy(), Liger(), CutCrossEntropy()):
        assert {setting["rows"] for setting in peer.settings(BASE, CPU)} == {"answers", "all"}
        assert {setting["rows"] for setting in peer.settings(without, CPU)} == {"answers"}
    assert {setting["rows"] for setting in Trl().settings(BASE, CPU)} == {"answers"}


def test_chunks_of_rows_are_searched() -> None:
    few, many = BASE, replace(BASE, length=2048, vocabulary=49152)  # 34 rows, 2048
    peer = TorchLinearCrossEntropy()
    assert [way["chunk"] for way in peer.ways(few, CPU)] == [None, "auto", 34]
    assert [way["chunk"] for way in peer.ways(many, CPU)] == [None, 128, 256, 512, 1024]
    on_gpu = [way["chunk"] for way in peer.ways(many, torch.device("cuda"))]
    assert on_gpu == [None, "auto", 1024, 2048]


def test_no_tile_is_wider_than_the_vocabulary() -> None:
    widths = [way["columns"] for way in Trl().ways(GPU_CASE, CUDA)]
    assert widths == [8192, 32768, 49152]


def test_kernels_of_16_bits_are_tried_where_there_are_16_bits() -> None:
    peer = CutCrossEntropy()
    in_16 = [way["impl"] for way in peer.ways(GPU_CASE, CUDA)]
    in_32 = [way["impl"] for way in peer.ways(replace(GPU_CASE, dtype="float32"), CUDA)]
    assert (in_16, in_32) == (["torch_compile", "cce", "cce"], ["torch_compile"])


def test_sums_in_fp32_are_tried_for_a_trained_head_in_16_bits() -> None:
    for trained in (False, True):
        ways = Liger().ways(replace(GPU_CASE, trainable_head=trained), CUDA)
        assert ("float32" in {way["accumulate"] for way in ways}) is trained


def test_quack_takes_rows_in_eights() -> None:
    odd = replace(GPU_CASE, length=36)  # answers of 18, times 2: 36 rows of 72 positions
    assert {setting["rows"] for setting in Quack().settings(odd, CUDA)} == {"all"}
    assert {setting["rows"] for setting in Quack().settings(GPU_CASE, CUDA)} == {"answers", "all"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "its kernels take 16 bits alone"),
        ({"hidden": 44}, "D must be a multiple of 8, and is 44"),
        ({"vocabulary": 1031}, "V must be a multiple of 8, and is 1031"),
        ({"length": 33}, "rows must be a multiple of 8, and are 34"),
        ({}, None),
    ],
)
def test_quack_says_what_does_not_fit(
    change: dict[str, object], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("benchmarks.peers.cross_entropies.find_spec", lambda name: object())
    case = replace(GPU_CASE, **change)  # type: ignore[arg-type]
    assert Quack().unsuited(case, CUDA) == reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert Quack().unsuited(case, CUDA) == "its kernels need compute capability 9.0"


def test_composed_names_the_cross_entropy_and_leaves_its_own_choices_out() -> None:
    peer = Composed("composed", CROSS_ENTROPIES, every_column=True)
    settings = peer.settings(replace(BASE, op="pact_loss"), CPU)
    ours = [each for each in settings if each["cross_entropy"] == "torch linear_cross_entropy"]
    assert [dict(each) for each in ours] == [
        {"cross_entropy": "torch linear_cross_entropy", "rows": "answers", "chunk": 34}
    ]


def test_k_columns_are_not_enough_over_the_vocabulary() -> None:
    peer = Composed("composed", CROSS_ENTROPIES, every_column=False)
    loss = replace(BASE, op="pact_loss")
    assert peer.unavailable(loss, CPU) == "over the vocabulary a KL needs all columns"
    assert peer.unavailable(replace(loss, over="selection"), CPU) is None


def test_the_released_objective_is_over_the_selection_and_gated() -> None:
    peer, loss = Released(), replace(BASE, op="pact_loss")
    assert peer.other_objective(replace(loss, over="selection", cached=True)) is None
    assert "over the vocabulary" in str(peer.other_objective(loss))
    assert peer.unavailable(replace(loss, gated=False), CPU) is not None


@pytest.mark.parametrize("peer", OTHERS, ids=lambda peer: peer.name)
def test_another_objective_is_said_to_be_one(peer: Peer) -> None:
    other = peer.other_objective(replace(BASE, op=peer.ops[0]))
    assert (other is not None) == ("full-vocabulary" in peer.name)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert "no-such-compiler" in str(peers.cannot_compile(CPU))
    assert "triton" in str(peers.cannot_compile(CUDA))
