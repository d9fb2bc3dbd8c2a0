"""Every Python and YAML block of README.md and docs/ is run by a test; those outside the operators'
guide by the ones here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import pact
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from tests.docs.blocks import RUN, Block, blocks, pages, run, runs
from tests.integrations.torchtitan_interface import above_the_stand_in
from tests.tiny import tiny_llama, tiny_tokenizer

INTEGRATIONS = "docs/guides/integrations.md"
TOKENS = SafetyTokens(torch.tensor([5, 17]), torch.ones(2))
RUNNABLE = [block for page in pages() for block in blocks(page, "python", "yaml")]


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: f"{block.page}:{block.line}")
def test_a_test_runs_it(block: Block) -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        import_module(f"tests.docs.{path.stem}")
    assert (block.page, block.heading) in RUN, (
        f"{block.page}:{block.line}: no test runs the {block.language} under {block.heading!r}; "
        "write one, with @runs above it"
    )


def test_what_tests_run_is_there() -> None:
    assert {(block.page, block.heading) for block in RUNNABLE} >= RUN


@runs("README.md", "The op")
def test_the_readmes_op_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Its comment has the losses: processors draw and sum alike to 1e-4, and no edge is as near."""
    with torch.random.fork_rng():
        found = run("README.md", "The op", {})
    (block,) = (each for each in blocks("README.md", "python") if each.heading == "The op")
    assert capsys.readouterr().out.strip() == block.text.rpartition("  # ")[2]
    hidden, weight, target, out = (found[name] for name in ("hidden", "weight", "target", "out"))
    for value in (out.loss.detach(), out.cross_entropy, 10 * out.kl):
        assert 0.1 < float(100 * value - 0.5) % 1 < 0.9
    with torch.no_grad():
        theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, target)
        first, second = (found["full"] @ weight.T).topk(2).values.T
    torch.testing.assert_close(out.cross_entropy, theirs)
    assert out.cross_entropy < 4  # a draw of a token at random has log V, 10.8
    assert bool((first - second > 1e-3).all())  # the drawn targets are the same everywhere
    assert hidden.grad is not None and bool(hidden.grad.any(dim=-1).all())


@runs("README.md", "Training")
def test_the_readmes_training_leaves_adapters(in_folder: Path) -> None:
    run("README.md", "Training", {})
    assert (in_folder / "run" / "adapter_model.safetensors").is_file()


@runs("docs/getting-started.md", "Your own model")
def test_getting_started(in_folder: Path) -> None:
    found = run("docs/getting-started.md", "Your own model", {})
    assert found["result"].records and (in_folder / "run" / "config.yaml").is_file()


@runs("docs/getting-started.md", "In the trainer that you have")
@pytest.mark.usefixtures("in_folder")
def test_getting_started_in_ones_own_trainer(names: dict[str, Any]) -> None:
    given = {"model": names["model"], "batch": names["batches"][0]}
    found = run("docs/getting-started.md", "In the trainer that you have", given)
    assert found["loss"].requires_grad


@runs(INTEGRATIONS, "One line for a transformers model")
def test_one_line_for_a_transformers_model() -> None:
    ids = torch.arange(3, 15)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    names = {"model": tiny_llama(), "tokens": TOKENS, "batch": batch}
    found = run(INTEGRATIONS, "One line for a transformers model", names)
    assert float(found["loss"]) > 0 and int(found["parts"].num_rows) == 11
    assert found["model"](ids).logits is not None


class CustomSeq2SeqTrainer(Trainer):
    """As LLaMA-Factory's: arguments of its own, before Trainer's by name."""

    def __init__(self, finetuning_args: Any, processor: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@runs(INTEGRATIONS, "LLaMA-Factory, and any other subclass of Trainer")
def test_the_mixin_before_a_trainer(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("llamafactory.train.sft.trainer")
    vars(module).update(CustomSeq2SeqTrainer=CustomSeq2SeqTrainer)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings = {"max_steps": 1, "use_cpu": True, "report_to": "none", "logging_steps": 1}
    arguments = TrainingArguments(str(tmp_path), **settings)
    given = {"model": names["model"], "tokens": TOKENS, "finetuning_args": None}
    heading = "LLaMA-Factory, and any other subclass of Trainer"
    trainer = run(INTEGRATIONS, heading, {**given, "arguments": arguments})["trainer"]
    trainer.train_dataset = names["dataset"]
    trainer.data_collator = DataCollatorForSeq2Seq(tiny_tokenizer())
    trainer.train()
    assert any("kl" in entry for entry in trainer.state.log_history)
    pact.unpatch(names["model"])


@runs(INTEGRATIONS, "torchtitan")
def test_torchtitans_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModuleType("torchtitan.models.llama3.config_registry")
    vars(registry).update(llama3_8b=lambda: ModuleType("config"))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    ours = above_the_stand_in()
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    config = run(INTEGRATIONS, "torchtitan", {})["llama3_8b_fused"]()
    assert isinstance(config.loss, ours.FusedCrossEntropyLoss.Config)


@runs(INTEGRATIONS, "Axolotl")
def test_axolotls_settings_are_the_plugins() -> None:
    """The plugin itself is run by `tests/integrations/test_axolotl.py`."""
    (block,) = (each for each in blocks(INTEGRATIONS, "yaml") if each.heading == "Axolotl")
    settings = yaml.safe_load(block.text)
    (plugin,) = settings.pop("plugins")
    module, _, name = plugin.rpartition(".")
    assert name in (Path(pact.__path__[0]).parent / f"{module.replace('.', '/')}.py").read_text()
    assert PactConfig(**settings.pop("pact_config")).kl_weight == 10
    assert set(settings) == {"pact_tokens"}
