"""What peers that need a GPU are called with: a dense stand-in has their signature here."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases.case import IGNORE, make_inputs
from benchmarks.cases.plans import QUICK_SOFTCAP
from benchmarks.peers.cross_entropies import CrossEntropyPeer, CutCrossEntropy, Liger, Quack
from benchmarks.peers.full_kl import LIGER_KL
from tests.benchmarks.peers.judging import BASE, assert_equal, run

CUDA = torch.device("cuda")
# 36 rows of 72 positions, D 40, V 1024: multiples of 8 for quack, but the rows.
ALIGNED = replace(BASE, length=36, vocabulary=1024)


class StandIns:
    """In place of the packages' functions; they note the options that they are called with."""

    def __init__(self) -> None:
        self.options: list[tuple[Any, ...]] = []

    def liger(
        self,
        input: Tensor,
        weight: Tensor,
        target: Tensor,
        *,
        softcap: float | None,
        accum_dtype: torch.dtype | None,
        chunk_mem_const: int,
    ) -> Tensor:
        self.options.append((chunk_mem_const, accum_dtype))
        return self._dense(input, weight, target, softcap)

    def quack(
        self,
        x: Tensor,
        weight: Tensor,
        target: Tensor,
        *,
        chunk_size: int,
        use_scaled_exp: bool | None,
    ) -> Tensor:
        assert len(x) % 8 == 0
        self.options.append((chunk_size, use_scaled_exp))
        return self._dense(x, weight, target)

    def cut(
        self,
        e: Tensor,
        c: Tensor,
        targets: Tensor,
        *,
        softcap: float | None,
        impl: str,
        filter_eps: str | None = "high",
    ) -> Tensor:
        self.options.append((impl, filter_eps))
        return self._dense(e, c, targets, softcap)

    def divergence(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        *,
        jsd_beta: float,
    ) -> Tensor:
        self.options.append((jsd_beta, student_weight, teacher_weight))
        return (student_input - teacher_input).square().sum() + student_weight.sum()

    def _dense(
        self, hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None = None
    ) -> Tensor:
        z = hidden @ weight.T
        z = z if softcap is None else softcap * (z / softcap).tanh()
        return functional.cross_entropy(z, target, ignore_index=IGNORE)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    made = StandIns()
    modules = {
        "liger_kernel.transformers.functional": SimpleNamespace(
            liger_fused_linear_cross_entropy=made.liger, liger_fused_linear_jsd=made.divergence
        ),
        "quack.linear_cross_entropy": SimpleNamespace(chunked_linear_cross_entropy=made.quack),
        "cut_cross_entropy": SimpleNamespace(linear_cross_entropy=made.cut),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("peer", [Liger(), Quack(), CutCrossEntropy()], ids=lambda peer: peer.name)
def test_rows_targets_and_head_arrive(
    peer: CrossEntropyPeer, trainable: bool, stand_ins: StandIns
) -> None:
    case = replace(ALIGNED, trainable_head=trainable)
    settings = peer.settings(case, CUDA)
    assert len(settings) >= 2
    for setting in settings:
        assert_equal(run(peer, case, setting), case)


@pytest.mark.parametrize("peer", [Liger(), CutCrossEntropy()], ids=lambda peer: peer.name)
def test_a_soft_cap_arrives(peer: CrossEntropyPeer, stand_ins: StandIns) -> None:
    case = replace(ALIGNED, softcap=QUICK_SOFTCAP)
    for setting in peer.settings(case, CUDA):
        assert_equal(run(peer, case, setting), case)
    assert Quack().unavailable(case, CUDA) in (
        "it takes no soft cap",
        "quack-kernels is not installed",
    )


def test_settings_arrive(stand_ins: StandIns) -> None:
    case = replace(ALIGNED, trainable_head=True, dtype="bfloat16", prompt_share=0.0)
    for peer in (Liger(), Quack(), CutCrossEntropy()):
        for setting in peer.settings(case, CUDA):
            run(peer, case, setting)
    assert list(dict.fromkeys(stand_ins.options)) == [
        *((budget, dtype) for budget in (1, 4, 16) for dtype in (None, torch.float32)),
        *((chunk, each) for chunk in (2048, 4096, 8192) for each in (None, False)),
        ("torch_compile", "high"),
        ("cce", "high"),
        ("cce", None),
    ]


def test_the_teacher_is_the_full_context_reference(stand_ins: StandIns) -> None:
    case = replace(ALIGNED, op="pact_kl", trainable_head=True)
    inputs = make_inputs(case)
    found = LIGER_KL.prepare(case, inputs, {})()
    ((beta, student, teacher),) = stand_ins.options
    assert beta == 0.0 and student is inputs.weight and teacher is inputs.reference_weight
    keep = (inputs.target != IGNORE)[:, None]
    expected = 2 * (inputs.hidden - inputs.reference_hidden).detach() * keep
    torch.testing.assert_close(found["gradient of hidden"], expected)
    assert bool((found["gradient of weight"] == 1).all())
