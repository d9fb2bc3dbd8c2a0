"""TRL's SFTTrainer under `PactTrainer`: it prepares the data, and the loss is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.training import PactTrainer
from tests.rounding import SUMS
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS


class PactSFT(PactTrainer, SFTTrainer):
    """What users write today."""


def trained(kind: type, folder: Path, **options: Any) -> list[dict[str, float]]:
    """The logs of two steps on prompts and completions."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "completion": [{"role": "assistant", "content": "I cannot. " * (n + 1)}],
        }
        for n in range(6)
    ]
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = SFTConfig(
        str(folder),
        bf16=False,
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        learning_rate=1e-3,
        **quiet,
    )
    data = Dataset.from_list(rows)
    made = kind(
        tiny_llama(), args, processing_class=tiny_tokenizer(), train_dataset=data, **options
    )
    made.train()
    return [entry for entry in made.state.log_history if "loss" in entry]


def test_its_loss_without_a_pull_is_trls(tmp_path: Path) -> None:
    tokens = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)
    pact = PactConfig(over="selection", kl_weight=0.0)
    ours = trained(PactSFT, tmp_path / "ours", tokens=tokens, pact=pact)
    theirs = trained(SFTTrainer, tmp_path / "theirs")
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=SUMS)
        assert mine["kl"] > 0
