"""A head whose vocabulary is sharded over 2 and 3 processes is one process's, within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import pact_kernels as pk
from tests.ops.parallel import CASES, LSE, WIDTH, Case, problem, run

ROOT = Path(__file__).parents[2]


@cache
def one(name: str) -> dict[str, Any]:
    return run(CASES[name])


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each process came to."""
    folder, processes = tmp_path_factory.mktemp("parallel"), request.param
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            str(ROOT / "tests/ops/parallel.py"),
            str(folder),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    difference = (got.double() - exact.double()).norm()
    return float(difference / exact.double().norm().clamp(min=1e-6))


def exact(name: str) -> dict[str, torch.Tensor]:
    """The naive formula in float64, on the same numbers."""
    with pk.implementation("naive"):
        return run(CASES[name], in_float64=True)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, found: list[Any]) -> None:
    """Against float64: at most twice the error of one process, and of fp32's sums."""
    case, whole, truth = CASES[name], one(name), exact(name)
    parts = [each[name] for each in found]
    gathered = {key: parts[0][key] for key in whole}
    for key in ("weight", "bias"):
        gathered[key] = torch.cat([part[key] for part in parts])
    for part in parts[1:]:  # every process has the same loss and hidden gradient
        for key in gathered:
            if key not in ("weight", "bias"):
                assert torch.equal(part[key], gathered[key]), key
    floor = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-3}[case.dtype]
    for key, value in gathered.items():
        assert value.dtype == whole[key].dtype and value.shape == whole[key].shape, key
        allowed = 2 * error(whole[key], truth[key]) + floor
        assert error(value, truth[key]) <= allowed, (key, error(value, truth[key]), allowed)


@pytest.mark.parametrize("name", CASES)
def test_three_small_all_reduces_and_one_of_the_hidden_gradient(
    name: str, found: list[Any]
) -> None:
    case: Case = CASES[name]
    forward = 2 if case.op == LSE else 3
    assert all(int(each[name]["collectives"]) == forward + 1 for each in found)


def test_a_dtensor_is_understood(found: list[Any]) -> None:
    p = problem(torch.float32)
    hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
    loss = pk.linear_cross_entropy(hidden, weight, p.target)
    loss.backward()
    for each in found:
        got = each["dtensor"]
        torch.testing.assert_close(got["value 0"], loss.detach())
        torch.testing.assert_close(got["hidden"], hidden.grad, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(got["weight"], weight.grad, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_right_is_refused_in_every_process(found: list[Any]) -> None:
    for each in found:
        beyond, smoothed, whole = each["refused"]
        assert "target must be in [0, V=53)" in beyond
        assert "needs logits without a soft cap" in smoothed
        assert "must be sharded along the vocabulary" in whole


def test_a_reference_whose_head_is_not_cut_alike_is_refused() -> None:
    """Before anything is exchanged, in every process: its tokens would be others."""
    p = problem(torch.float32)
    rows = p.hidden[:, 3:].reshape(-1, WIDTH)
    with pytest.raises(ValueError, match="must be cut as the student's is, 20 rows .*, got 53"):
        pk.pact_kl(
            rows,
            p.weight[:20],
            p.token_ids,
            p.token_weights,
            p.step,
            pk.ReferenceStates(p.full, None, p.other),
            gate=None,
            process_group=object(),
        )
