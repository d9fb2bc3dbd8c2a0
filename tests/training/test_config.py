"""Settings: what is refused, and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pact.objective import PactConfig
from pact.training.config import CONFIG_FILE, FitConfig, TrainConfig, save_configs

RUN = {"model": "m", "train_file": "t.jsonl", "output_dir": "o", "method": "plain"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite, got inf"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, or unset, got 0"),
        ({"micro_batch_size": 9}, "micro_batch_size must be from 1 to batch_size=8"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio must be in \[0, 1\], got 1.5"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be finite, or inf, got nan"),
        ({"dtype": "fp16"}, "dtype must be 'fp32' or 'bf16', got 'fp16'"),
        ({"save_every": 0}, "save_every must be at least 1, or unset, got 0"),
    ],
)
def test_the_loop_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pact"}, "method=pact needs the safety tokens, got tokens unset"),
        ({"method": "sft"}, "method must be 'pact' or 'plain', got 'sft'"),
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"pack_length": 9}, "pack_length is of packed lines, got 9 without packing"),
        ({"cache": False, "cache_dir": "c"}, "cache_dir is of the reference's cache"),
        ({"pack_length": 0}, "pack_length must be at least 1, or unset, got 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\), got 1.0"),
        ({"lora_targets": ()}, "lora_targets must be at least one name"),
        ({"epochs": 0}, "epochs must be at least 1"),  # the base's checks run too
        ({"full_finetuning": True, "lora_dora": True}, "lora_dora is of adapters, got True"),
        ({"full_finetuning": True, "lora_rslora": True}, "lora_rslora is of adapters, got True"),
        ({"full_finetuning": True, "lora_r": 16}, "lora_r is of adapters, got 16 with full_f"),
        ({"full_finetuning": True, "lora_targets": ("k_proj",)}, "lora_targets is of adapters"),
    ],
)
def test_the_run_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**(RUN | settings))


def test_saved_settings_are_all_settings(tmp_path: Path) -> None:
    config = TrainConfig(**RUN, lora_targets=("q_proj",))
    save_configs(tmp_path, (config, PactConfig(gate=True)))
    saved = yaml.safe_load((tmp_path / CONFIG_FILE).read_text())
    assert saved["lora_targets"] == ["q_proj"]
    assert saved["learning_rate"] == FitConfig.learning_rate
    assert saved["gate"] is True
    for name in ("lora_targets", "report_to"):
        saved[name] = tuple(saved[name])
    names = TrainConfig.__dataclass_fields__
    assert TrainConfig(**{name: saved[name] for name in names}) == config


def test_a_config_is_written_whole(tmp_path: Path) -> None:
    save_configs(tmp_path, (TrainConfig(**RUN),))
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]
