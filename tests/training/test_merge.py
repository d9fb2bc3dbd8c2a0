"""Merged adapters are the model that was trained, and need no PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pact.cli import main
from pact.models.loading import load_model
from pact.training import TrainConfig, train
from tests.rounding import STATES
from tests.tiny import save_tiny
from tests.training.problem import conversations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of a few steps, and the model it began from."""
    folder = tmp_path_factory.mktemp("merge")
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    settings: dict[str, Any] = {"method": "plain", "max_steps": 3, "learning_rate": 1e-2}
    model = save_tiny(folder / "model")
    run = folder / "run"
    files = {"model": str(model), "train_file": str(folder / "train.jsonl"), "output_dir": str(run)}
    train(TrainConfig(**files, **settings))
    return {"model": model, "run": run}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_merged_model_is_the_trained_one(
    dtype: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "whole"
    flags = ["--adapters", str(trained["run"]), "--output-dir", str(output), "--dtype", dtype]
    assert main(["merge", *flags]) == 0
    assert "the whole model is saved in" in capsys.readouterr().out
    assert not (output / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(output)
    assert merged.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        ours, expected = merged.float()(ids).logits, load_model(trained["run"])(ids).logits
        before = load_model(trained["model"])(ids).logits
    atol = STATES * float(expected.abs().max()) if dtype == "fp32" else 0.1
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=atol)
    assert float((expected - before).abs().max()) > 0.1
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert [path.name for path in output.parent.iterdir()] == ["whole"]  # nothing is left beside


def test_what_is_no_run_of_adapters_is_refused(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for adapters, output, said in (
        (trained["model"], tmp_path / "a", "with an adapter_config.json"),
        (tmp_path / "nowhere", tmp_path / "a", "with an adapter_config.json"),
        (trained["run"], taken, "must be absent or an empty folder"),
    ):
        assert main(["merge", "--adapters", str(adapters), "--output-dir", str(output)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
