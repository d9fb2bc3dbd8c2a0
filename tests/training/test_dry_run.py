"""A dry run says what the run would do, refuses what it would refuse, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pact.cli import main
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.training.config import TrainConfig
from pact.training.dry_run import describe
from tests.tiny import save_tiny
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dry")
    rows = [json.dumps({"messages": turns}) for turns in conversations(10)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens.safetensors")
    return {
        "model": str(save_tiny(folder / "model")),
        "train_file": str(folder / "train.jsonl"),
        "tokens": str(folder / "tokens.safetensors"),
        "output_dir": str(folder / "output"),
    }


def config(files: dict[str, str], **settings: Any) -> TrainConfig:
    return TrainConfig(**{**files, "batch_size": 4, "epochs": 2, "warmup_ratio": 0.5, **settings})


def test_the_plan_and_the_first_batch(files: dict[str, str]) -> None:
    text = describe(config(files), PactConfig())
    assert "10 examples" in text and "steps       6 of 4 examples, 3 an epoch" in text
    assert "cosine from 3e-05, 3 to warm up" in text
    assert "cross-entropy + 10 KL over the vocabulary, 6 safety tokens" in text  # the positive ones
    examples = text.split("is learnt:\n")[1]
    assert examples.count("<|im_start|>assistant\n[[I cannot. ") >= 4
    assert examples.count("<|im_end|>]]") == examples.count("[[")
    assert "<|im_start|>user\nquestion" in examples
    assert not Path(files["output_dir"]).exists()


def test_colours(files: dict[str, str]) -> None:
    text = describe(config(files, method="plain", tokens=None), PactConfig(), colour=True)
    assert "\x1b[32mI cannot. " in text and "[[" not in text
    assert "objective   cross-entropy\n" in text


def test_the_command(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in files.items()]
    assert main(["train", *flags, "--dry-run"]) == 0
    assert "10 examples" in capsys.readouterr().out
    assert not Path(files["output_dir"]).exists()
    assert main(["train", *flags, "--dry-run", "--max-length", "2"]) == 2
    assert "at least one example must have an answer token" in capsys.readouterr().err
