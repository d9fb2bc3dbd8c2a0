"""The released implementation's objective, from token ids and labels to losses and gradients.

Rows, steps and post-only positions come from `pact.data.spans`, so the whole path is pinned. The
values are fp32, evaluated once: ours agree to 1e-5, relative to the largest value of each array.
(Discovery has golden values of its own: tests/discovery.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact.data.spans import answer_rows, post_only_inputs
from pact_kernels.naive.pact_kl import gate_value, selection_target
from tests.implementations import KERNELS, running

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("default", "short_answers", "no_answer_row", "flat_decay_off")
TOLERANCE = 1e-5


class Golden(NamedTuple):
    """One file's arrays, and what the ops are given. N rows, B sequences, A answer tokens."""

    arrays: dict[str, Tensor]
    gate: pk.GateConfig
    temperature: float
    sequence: Tensor  # (N,) place of a row's state in the batch
    position: Tensor  # (N,)
    step: Tensor  # (N,) with `sequence` also the row's place in (B, A) arrays
    post_sequence: Tensor  # (N,) place of its post-only state in (B, P)
    post_position: Tensor  # (N,)


def load(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as file:
        settings = json.loads(str(file["parameters_json"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file if key != "parameters_json"}
    prefix = "gate_"
    gate = {key.removeprefix(prefix): v for key, v in settings.items() if key.startswith(prefix)}
    rows = answer_rows(arrays["labels"])
    post = post_only_inputs(arrays["input_ids"], rows, arrays["assistant_header_ids"], 0)
    # The file has a line for every sequence, ours for every answer; here no sequence has two.
    answered = rows.sequence.unique()
    assert len(answered) == len(post.input_ids)
    expected = arrays["post_input_ids"][answered][:, : post.input_ids.shape[1]]
    assert torch.equal(post.input_ids, expected)
    return Golden(
        arrays=arrays,
        gate=pk.GateConfig(**gate),
        temperature=settings["kl_temperature"],
        sequence=rows.sequence,
        position=rows.position,
        step=rows.step,
        post_sequence=answered[post.sequence],
        post_position=post.position,
    )


def by_answer(golden: Golden, name: str) -> Tensor:
    """Rows of a (B, A, ...) array."""
    return golden.arrays[name][golden.sequence, golden.step]


def references(golden: Golden, source: str) -> pk.ReferenceLogits | pk.ReferenceStates:
    if source == "logits":
        return pk.ReferenceLogits(
            by_answer(golden, "reference_selected_logits_full"),
            by_answer(golden, "reference_selected_logits_post"),
        )
    full, post = (golden.arrays[f"reference_hidden_{name}"] for name in ("full", "post"))
    return pk.ReferenceStates(
        full[golden.sequence, golden.position],
        post[golden.post_sequence, golden.post_position],
        golden.arrays["reference_weight"],
    )


def assert_golden(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


@pytest.fixture(params=["naive", "chunked", *KERNELS])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    # A workspace of a few rows: the sums of several chunks must come to the golden ones.
    with running(request.param, monkeypatch) as name, pk.workspace(0.02):
        yield name


def test_rows_are_the_answer_tokens(golden: Golden) -> None:
    mask = torch.zeros_like(golden.arrays["answer_mask"])
    mask[golden.sequence, golden.step] = 1
    assert torch.equal(mask, golden.arrays["answer_mask"])


@pytest.mark.usefixtures("implementation")
def test_selected_logits(golden: Golden) -> None:
    states = references(golden, "states")
    cached = references(golden, "logits")
    ids = golden.arrays["token_ids"]
    student = golden.arrays["student_hidden"][golden.sequence, golden.position]
    for hidden, weight, expected in (
        (student, golden.arrays["student_weight"], by_answer(golden, "student_selected_logits")),
        (states.full_hidden, states.weight, cached.full),
        (states.post_hidden, states.weight, cached.post),
    ):
        assert_golden(pk.selected_logits(hidden, weight, ids), expected)


def test_gate_and_target_distribution(golden: Golden) -> None:
    student = by_answer(golden, "student_selected_logits")
    full, post, *_ = references(golden, "logits")
    gate = gate_value(student, post, golden.step, golden.gate)
    assert_golden(gate, by_answer(golden, "gate"))
    mixed = torch.lerp(full, post, gate[:, None])
    target = selection_target(mixed, golden.arrays["token_weights"], golden.temperature)
    assert_golden(target, by_answer(golden, "target_distribution"))


@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.usefixtures("implementation")
def test_kl_of_every_token(golden: Golden, source: str) -> None:
    got = pk.pact_kl(
        golden.arrays["student_hidden"][golden.sequence, golden.position],
        golden.arrays["student_weight"],
        golden.arrays["token_ids"],
        golden.arrays["token_weights"],
        golden.step,
        references(golden, source),
        gate=golden.gate,
        temperature=golden.temperature,
        reduction="none",
    )
    assert_golden(got, by_answer(golden, "kl_per_token"))


def shifted(labels: Tensor) -> Tensor:
    """(B, L) targets: the token that each position predicts, or -100."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.usefixtures("implementation")
def test_kl_loss_and_its_gradients(golden: Golden, source: str) -> None:
    hidden = golden.arrays["student_hidden"].clone().requires_grad_()
    weight = golden.arrays["student_weight"].clone().requires_grad_()
    loss = pk.pact_kl(
        hidden[golden.sequence, golden.position],
        weight,
        golden.arrays["token_ids"],
        golden.arrays["token_weights"],
        golden.step,
        references(golden, source),
        gate=golden.gate,
        temperature=golden.temperature,
    )
    loss.backward()
    assert_golden(loss.detach(), golden.arrays["kl_loss"])
    assert_golden(hidden.grad, golden.arrays["grad_hidden_kl"])
    assert_golden(weight.grad, golden.arrays["grad_weight_kl"])


@pytest.mark.usefixtures("implementation")
def test_ce_loss_and_its_gradients(golden: Golden) -> None:
    hidden = golden.arrays["student_hidden"].clone().requires_grad_()
    weight = golden.arrays["student_weight"].clone().requires_grad_()
    loss = pk.linear_cross_entropy(hidden, weight, shifted(golden.arrays["labels"]))
    loss.backward()
    assert_golden(loss.detach(), golden.arrays["ce_loss"])
    assert_golden(hidden.grad, golden.arrays["grad_hidden_ce"])
    assert_golden(weight.grad, golden.arrays["grad_weight_ce"])


@pytest.mark.parametrize("source, kl_weight", [("states", 1.0), ("logits", 0.25)])
@pytest.mark.usefixtures("implementation")
def test_pact_loss_is_their_sum(golden: Golden, source: str, kl_weight: float) -> None:
    hidden = golden.arrays["student_hidden"].clone().requires_grad_()
    weight = golden.arrays["student_weight"].clone().requires_grad_()
    out = pk.pact_loss(
        hidden,
        weight,
        shifted(golden.arrays["labels"]),
        golden.arrays["token_ids"],
        golden.arrays["token_weights"],
        golden.step,
        references(golden, source),
        kl_weight=kl_weight,
        gate=golden.gate,
        temperature=golden.temperature,
    )
    out.loss.backward()

    def total(of: str) -> Tensor:
        return golden.arrays[of.format("ce")] + kl_weight * golden.arrays[of.format("kl")]

    assert_golden(out.loss.detach(), total("{}_loss"))
    assert_golden(out.cross_entropy, golden.arrays["ce_loss"])
    assert_golden(out.kl, golden.arrays["kl_loss"])
    assert_golden(hidden.grad, total("grad_hidden_{}"))
    assert_golden(weight.grad, total("grad_weight_{}"))
    assert int(out.num_rows) == golden.step.numel()
    assert_golden(out.mean_gate, by_answer(golden, "gate").mean())
