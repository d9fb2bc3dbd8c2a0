"""docs/guides/operators.md runs as it stands, and the messages that docs/reference/operators.md
quotes are what users see."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pact_kernels as pk
from tests.docs.blocks import read, run, runs

PAGE = "docs/guides/operators.md"
REFERENCE = "docs/reference/operators.md"


def adapters(model: Any) -> list[Tensor]:
    return [p.detach().clone() for name, p in model.named_parameters() if "lora_" in name]


def number_of_rows(batch: dict[str, Tensor]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


@runs(PAGE, "Settings")
def test_settings() -> None:
    assert run(PAGE, "Settings", {})["lse"].dtype == torch.float64


@runs(PAGE, "A plain loop")
def test_a_plain_loop_trains_the_adapters(names: dict[str, Any]) -> None:
    before = adapters(names["model"])
    out = run(PAGE, "A plain loop", names)["out"]
    assert out.num_rows == number_of_rows(names["batches"][-1])
    assert out.kl > 0 and out.mean_gate > 0
    assert any(
        not torch.equal(*pair) for pair in zip(before, adapters(names["model"]), strict=True)
    )
    assert names["model"].training


@runs(PAGE, "A transformers Trainer")
def test_a_trainer_divides_by_the_rows_of_its_step(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    loss = pk.pact_loss
    monkeypatch.setattr(
        pk, "pact_loss", lambda *a, **k: given.append(k["num_items"]) or loss(*a, **k)
    )
    trainer = run(PAGE, "A transformers Trainer", names)["trainer"]
    total = sum(number_of_rows({"labels": torch.tensor([e["labels"]])}) for e in names["dataset"])
    # Two steps of two examples: all four of an epoch.
    assert len(given) == 4 and given[0] == given[1] and given[2] == given[3]
    assert int(given[0] + given[2]) == total
    assert trainer.state.log_history[-1]["train_loss"] > 0
    assert trainer.evaluate(names["dataset"])["eval_loss"] > 0


@runs(PAGE, "Beside another fused cross-entropy")
def test_beside_another_cross_entropy_both_ways_agree(names: dict[str, Any]) -> None:
    names["model"].eval()  # no dropout between the two
    found = run(PAGE, "Beside another fused cross-entropy", names)
    with torch.no_grad():
        kl = pk.pact_kl(found["hidden"], found["weight"], *found["given"], gate=None)
        theirs = torch.nn.functional.cross_entropy(
            found["hidden"] @ found["weight"].T, found["target"]
        )
    assert kl > 0
    torch.testing.assert_close(found["ce"].detach(), theirs)


@runs(PAGE, "Evaluation and discovery")
def test_evaluation_and_discovery(names: dict[str, Any]) -> None:
    found = run(PAGE, "Evaluation and discovery", names)
    rows = number_of_rows(names["batches"][0])
    assert found["confidence"].shape == (rows, len(names["token_ids"]))
    assert found["first"].shape == (2,) and bool(found["first"].gt(0).all())
    assert len(found["tokens"].ids) == 50


@runs(PAGE, "torch.compile and autocast")
def test_compile_and_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler; `tests/ops/test_compile.py` goes through inductor."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = run(PAGE, "torch.compile and autocast", {})
    assert found["states"].grad is not None
    assert found["loss"].dtype == torch.float32


@pytest.mark.usefixtures("one_rank")
@runs(PAGE, "Sharded heads")
def test_sharded_heads(names: dict[str, Any]) -> None:
    weight = torch.randn(320, 16)
    sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_()
    names |= {
        "sharded": sharded,
        "hidden": torch.randn(7, 16, requires_grad=True),
        "target": torch.randint(320, (7,)),
        "step": torch.arange(7),
    }
    found = run(PAGE, "Sharded heads", names)
    with pytest.raises(ValueError, match="weight must be whole, got DTensor"):
        pk.linear_cross_entropy(found["hidden"], sharded, found["target"])
    assert sharded.grad is not None and sharded.grad.placements == (Shard(0),)
    torch.testing.assert_close(found["lse"], (found["hidden"] @ weight.T).logsumexp(-1))
    full = pk.ReferenceStates(found["hidden"].detach(), None, weight)
    tokens = names["token_ids"], names["token_weights"], found["step"]
    whole = pk.pact_kl(found["hidden"], weight, *tokens, full, gate=None)
    torch.testing.assert_close(found["kl"], whole)


MESSAGES = {
    "hidden and weight must share one floating dtype": {"hidden": torch.randn(4, 8).double()},
    "target must have hidden's shape without its last dimension": {"target": torch.arange(3)},
    "a target must lie in": {"target": torch.tensor([0, 1, 9, 2])},
    "token_ids must lie in": {"token_ids": torch.tensor([0, 9])},
    "step, reference and row_weight must have one entry per row": {
        "step": torch.arange(3),
        "reference": pk.ReferenceLogits(torch.randn(3, 2), torch.randn(3, 2)),
    },
    "reference.post is needed": {"reference": pk.ReferenceLogits(torch.randn(4, 2))},
    "reference.full_lse is needed": {"over": "vocabulary"},
    "token_weights must have a positive entry": {"token_weights": torch.zeros(2)},
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_what_users_see(message: str) -> None:
    given = {
        "hidden": torch.randn(4, 8),
        "weight": torch.randn(9, 8),
        "target": torch.arange(4),
        "token_ids": torch.tensor([0, 5]),
        "token_weights": torch.ones(2),
        "step": torch.arange(4),
        "reference": pk.ReferenceLogits(torch.randn(4, 2), torch.randn(4, 2)),
    }
    assert f"`{message}" in read(REFERENCE)
    with pytest.raises(ValueError, match=re.escape(message)):
        pk.pact_loss(**{**given, **MESSAGES[message]})


@pytest.mark.usefixtures("one_rank")
@runs(PAGE, "Vocabulary-parallel heads")
def test_vocabulary_parallel_heads() -> None:
    hidden, part, target = torch.randn(7, 16), torch.randn(30, 16), torch.randint(30, (7,))
    found = run(
        PAGE, "Vocabulary-parallel heads", {"hidden": hidden, "part": part, "target": target}
    )
    logits = hidden @ part.T
    torch.testing.assert_close(found["loss"], torch.nn.functional.cross_entropy(logits, target))
    torch.testing.assert_close(found["lse"], logits.logsumexp(-1))


@runs(PAGE, "Each row's own tokens")
def test_each_rows_own_tokens() -> None:
    found = run(
        PAGE, "Each row's own tokens", {"hidden": torch.randn(7, 16), "weight": torch.randn(30, 16)}
    )
    assert float(found["kl"]) > 0


def test_the_other_quoted_messages() -> None:
    hidden, weight, target = (
        torch.randn(4, 8, requires_grad=True),
        torch.randn(9, 8),
        torch.arange(4),
    )
    tokens = torch.tensor([0, 5]), torch.ones(2)
    reference = pk.ReferenceLogits(torch.randn(3, 2))
    out = pk.pact_loss(
        hidden,
        weight,
        target,
        *tokens,
        target,
        reference._replace(full=torch.randn(4, 2)),
        gate=None,
    )
    loss = pk.linear_cross_entropy(hidden, weight, target)
    calls = {
        "step must have one entry per row of hidden": lambda: pk.pact_kl(
            hidden, weight, *tokens, target[:3], reference, gate=None
        ),
        "'PactLoss' object has no attribute 'backward'": lambda: out.backward(),
        "has no second derivative": lambda: torch.autograd.grad(loss, hidden, create_graph=True),
    }
    for message, call in calls.items():
        assert f"`{message}" in read(REFERENCE)
        with pytest.raises((ValueError, AttributeError, RuntimeError), match=re.escape(message)):
            call()
