"""The Python blocks of docs/operators.md, and README's op, run as they stand, on a CPU, with a tiny
random model.

The blocks of a section share one namespace, which holds what the page says that they assume. Every
section begins anew, from the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pact_kernels as pk
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.discovery import SafetyTokens
from tests.tiny import tiny_llama, tiny_tokenizer

README = Path(__file__).parents[1] / "README.md"
PAGE = README.parent / "docs" / "operators.md"
HEADING = re.compile(r"^#{2,3} (.+)$")
CONVERSATIONS = [
    [
        {"role": "user", "content": "How do I do that?" + " Please." * n},
        {"role": "assistant", "content": "I cannot help with that request." + " Sorry." * (3 - n)},
    ]
    for n in range(4)  # prompts and answers of unlike length
]


def sections(page: Path = PAGE) -> dict[str, list[tuple[int, str]]]:
    """Heading -> its Python blocks, each with the number of the line before it."""
    found: dict[str, list[tuple[int, str]]] = {}
    heading, block, language = "", [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and language is None:
            language, block, start = line.removeprefix("```"), [], number
        elif line == "```":
            if language == "python":
                found.setdefault(heading, []).append((start, "\n".join(block)))
            language = None
        elif language is not None:
            block.append(line)
        elif match := HEADING.match(line):
            heading = match[1]
    assert language is None, f"the block of line {start} is not closed"
    return found


def run(heading: str, names: dict[str, Any], page: Path = PAGE) -> dict[str, Any]:
    """Execute a section's blocks in order; a failure names the page and its line."""
    for line, code in sections(page)[heading]:
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    """What the recipes assume."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=0.1)
    model = get_peft_model(tiny_llama(), lora).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at first: student and reference would be one
            torch.nn.init.normal_(parameter)
    tokenizer = tiny_tokenizer()
    encoded = encode_examples(CONVERSATIONS, tokenizer, max_length=100)
    dataset = [
        {**{k: row[k] for k in ("input_ids", "labels")}, "attention_mask": [1] * len(row["labels"])}
        for row in encoded
    ]
    collate = Collator((), tokenizer.pad_token_id, post_only=False)
    kept = ("input_ids", "attention_mask", "labels")
    batches = [collate([encoded[n] for n in pair]) for pair in ((0, 1), (2, 3))]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "batches": [{k: batch[k] for k in kept} for batch in batches],
        "token_ids": torch.tensor([5, 17, 40, 99, 260]),
        "token_weights": torch.tensor([0.6, -0.1, 0.3, 0.2, 0.5]),
        "dataset": dataset,
        "output_dir": str(tmp_path / "run"),
        "aligned": tiny_llama(seed=1),
        "base": tiny_llama(seed=2),
    }


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def adapters(model: Any) -> list[Tensor]:
    return [p.detach().clone() for name, p in model.named_parameters() if "lora_" in name]


def number_of_rows(batch: dict[str, Tensor]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def test_every_block_is_run_by_a_test_below() -> None:
    assert set(sections()) == {
        "Settings",
        "A plain loop",
        "A transformers Trainer",
        "Beside another fused cross-entropy",
        "Evaluation and discovery",
        "torch.compile and autocast",
        "Sharded heads",
        "Vocabulary-parallel heads",
        "Each row's own tokens",
    }


def test_the_readmes_op_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Its comment has the losses: processors draw and sum alike to 1e-4, and no edge is as near."""
    with torch.random.fork_rng():
        found = run("The op", {}, README)
    ((_, code),) = sections(README)["The op"]
    assert capsys.readouterr().out.strip() == code.rpartition("  # ")[2]
    hidden, weight, target, out = (found[name] for name in ("hidden", "weight", "target", "out"))
    for value in (out.loss, out.cross_entropy, out.kl):
        assert 0.01 < float(100 * value - 0.5) % 1 < 0.99
    with torch.no_grad():
        theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, target)
        first, second = (found["full"] @ weight.T).topk(2).values.T
    torch.testing.assert_close(out.cross_entropy, theirs)
    assert out.cross_entropy < 4  # a draw of a token at random has log V, 10.8
    assert bool((first - second > 1e-3).all())  # the drawn targets are the same everywhere
    assert hidden.grad is not None and bool(hidden.grad.any(dim=-1).all())


def test_settings() -> None:
    assert run("Settings", {})["lse"].dtype == torch.float64


def test_a_plain_loop_trains_the_adapters(names: dict[str, Any]) -> None:
    before = adapters(names["model"])
    out = run("A plain loop", names)["out"]
    assert out.num_rows == number_of_rows(names["batches"][-1])
    assert out.kl > 0 and out.mean_gate > 0
    assert any(
        not torch.equal(*pair) for pair in zip(before, adapters(names["model"]), strict=True)
    )
    assert names["model"].training


def test_a_trainer_divides_by_the_rows_of_its_step(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    loss = pk.pact_loss
    monkeypatch.setattr(
        pk, "pact_loss", lambda *a, **k: given.append(k["num_items"]) or loss(*a, **k)
    )
    trainer = run("A transformers Trainer", names)["trainer"]
    total = sum(number_of_rows({"labels": torch.tensor([e["labels"]])}) for e in names["dataset"])
    # Two steps of two examples: all four of an epoch.
    assert len(given) == 4 and given[0] == given[1] and given[2] == given[3]
    assert int(given[0] + given[2]) == total
    assert trainer.state.log_history[-1]["train_loss"] > 0
    assert trainer.evaluate(names["dataset"])["eval_loss"] > 0


def test_beside_another_cross_entropy_both_ways_agree(names: dict[str, Any]) -> None:
    names["model"].eval()  # no dropout between the two
    found = run("Beside another fused cross-entropy", names)
    with torch.no_grad():
        kl = pk.pact_kl(found["hidden"], found["weight"], *found["given"], gate=None)
        theirs = torch.nn.functional.cross_entropy(
            found["hidden"] @ found["weight"].T, found["target"]
        )
    assert kl > 0
    torch.testing.assert_close(found["ce"].detach(), theirs)


def test_evaluation_and_discovery(names: dict[str, Any]) -> None:
    found = run("Evaluation and discovery", names)
    rows = number_of_rows(names["batches"][0])
    assert found["confidence"].shape == (rows, len(names["token_ids"]))
    assert found["first"].shape == (2,) and bool(found["first"].gt(0).all())
    assert len(found["tokens"].ids) == 50


def test_compile_and_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler; `tests/ops/test_compile.py` goes through inductor."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = run("torch.compile and autocast", {})
    assert found["states"].grad is not None
    assert found["loss"].dtype == torch.float32


@pytest.mark.usefixtures("one_rank")
def test_sharded_heads(names: dict[str, Any]) -> None:
    weight = torch.randn(320, 16)
    sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_()
    names |= {
        "sharded": sharded,
        "hidden": torch.randn(7, 16, requires_grad=True),
        "target": torch.randint(320, (7,)),
        "step": torch.arange(7),
    }
    found = run("Sharded heads", names)
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
    assert f"`{message}" in PAGE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        pk.pact_loss(**{**given, **MESSAGES[message]})


@pytest.mark.usefixtures("one_rank")
def test_vocabulary_parallel_heads() -> None:
    hidden, part, target = torch.randn(7, 16), torch.randn(30, 16), torch.randint(30, (7,))
    found = run("Vocabulary-parallel heads", {"hidden": hidden, "part": part, "target": target})
    logits = hidden @ part.T
    torch.testing.assert_close(found["loss"], torch.nn.functional.cross_entropy(logits, target))
    torch.testing.assert_close(found["lse"], logits.logsumexp(-1))


def test_each_rows_own_tokens() -> None:
    found = run(
        "Each row's own tokens", {"hidden": torch.randn(7, 16), "weight": torch.randn(30, 16)}
    )
    assert float(found["kl"]) > 0


def test_one_line_for_a_transformers_model() -> None:
    ids = torch.arange(3, 15)[None]
    names = {
        "model": tiny_llama(),
        "tokens": SafetyTokens(torch.tensor([5, 17]), torch.ones(2)),
        "batch": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids},
    }
    page = README.parent / "docs" / "integrations.md"
    found = run("One line for a transformers model", names, page)
    assert float(found["loss"]) > 0 and int(found["parts"].num_rows) == 11
    assert found["model"](ids).logits is not None


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
        assert f"`{message}" in PAGE.read_text(encoding="utf-8")
        with pytest.raises((ValueError, AttributeError, RuntimeError), match=re.escape(message)):
            call()
