"""A resumed run is the run that it goes on with, by its settings and by what its files hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.training import TrainConfig, train
from pact.training.config import CONFIG_FILE, save_configs
from pact.training.identity import check_settings
from tests.tiny import CHATML, save_tiny, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

RUN = {"model": "m", "train_file": "t.jsonl", "output_dir": "o", "method": "plain"}


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps({"messages": turns}) for turns in rows))
    return str(path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of one step, with a checkpoint behind it."""
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(tmp_path / "tokens.safetensors")
    settings = {
        "model": str(save_tiny(tmp_path / "model")),
        "reference_model": str(save_tiny(tmp_path / "reference", seed=1)),
        "train_file": write_rows(tmp_path / "train.jsonl", conversations(8)),
        "refusals": write_rows(tmp_path / "refusals.jsonl", conversations(4)),
        "tokens": str(tmp_path / "tokens.safetensors"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "save_every": 1,
        "max_length": 200,
    }
    train(TrainConfig(**settings), GATED)
    return settings


GATED = PactConfig(over="selection")


def resumed(settings: dict[str, Any], **changes: Any) -> None:
    train(TrainConfig(**settings | {"resume": True} | changes), GATED)


def test_the_same_contents_at_other_paths_are_the_same_run(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    moved = {}
    for name in ("model", "reference_model", "train_file", "refusals", "tokens"):
        old = Path(settings[name])
        moved[name] = str(old.rename(old.with_name(f"moved-{old.name}")))
    metrics = Path(settings["output_dir"]) / "metrics.jsonl"
    before = metrics.read_text()
    resumed(settings, **moved, save_every=3, log_every=2)
    assert metrics.read_text() == before  # a finished run: nothing was trained again


@pytest.mark.parametrize(
    ("what", "config_file"),
    [
        ("data", "kept"),
        ("refusals", "deleted"),
        ("safety tokens", "half"),
        ("weights", "kept"),
        ("model", "deleted"),
        ("reference", "half"),
        ("template", "kept"),
    ],
)
def test_other_contents_at_the_same_path_are_refused(
    what: str, config_file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    name = what
    if what == "data":
        write_rows(Path(settings["train_file"]), conversations(9)[1:])
    elif what == "refusals":
        write_rows(Path(settings["refusals"]), conversations(5)[1:])
        name = "data"
    elif what == "safety tokens":
        SafetyTokens(TOKEN_IDS + 1, TOKEN_WEIGHTS).save(settings["tokens"])
    elif what == "weights":
        SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS.flip(0)).save(settings["tokens"])
        name = "safety tokens"
    elif what == "template":
        template = CHATML.replace("+ message['content']", "+ 'Well: ' + message['content']")
        tiny_tokenizer(template).save_pretrained(settings["model"])
        name = "assistant header"
    else:
        shutil.rmtree(settings["model" if what == "model" else "reference_model"])
        save_tiny(settings["model" if what == "model" else "reference_model"], seed=2)
    config = Path(settings["output_dir"]) / CONFIG_FILE
    if config_file == "deleted":
        config.unlink()
    elif config_file == "half":
        config.write_text(config.read_text()[:100])
    with pytest.raises(ValueError, match=f"must read what it read before, got another .*{name}"):
        resumed(settings)


@pytest.mark.parametrize("config_file", ["kept", "deleted"])
def test_other_settings_are_refused_before_anything_is_read(
    config_file: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pact.training.inputs.load_tokenizer", lambda *_: pytest.fail("something was read")
    )
    if config_file == "deleted":
        (Path(settings["output_dir"]) / CONFIG_FILE).unlink()
    with pytest.raises(ValueError, match="must keep its settings, got learning_rate=0.0003 where"):
        resumed(settings, learning_rate=3e-4)
    with pytest.raises(ValueError, match="must keep its settings, got seed=1 where"):
        resumed(settings, seed=1)


def test_what_is_not_of_a_run_is_not_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    """Least of all the aligned model, which would be overwritten."""
    before = sorted(Path(settings["model"]).rglob("*"))
    with pytest.raises(ValueError, match="apart from what the run reads, got .*is its model"):
        resumed(settings, output_dir=settings["model"])
    assert sorted(Path(settings["model"]).rglob("*")) == before
    with pytest.raises(ValueError, match="which is its reference_model: name another"):
        resumed(settings, output_dir=settings["reference_model"] + "/.")
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="files of no run in it .notes.txt"):
        resumed(settings, output_dir=str(other))
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_setting_that_was_not_saved_had_its_default(tmp_path: Path) -> None:
    """As where a newer version has settings that an older one did not know."""
    config = TrainConfig(**RUN)
    check_settings(tmp_path, (config,))  # nothing was saved
    save_configs(tmp_path, (config, PactConfig(over="selection")))  # with an infinity
    check_settings(tmp_path, (config, PactConfig(over="selection")))
    path = tmp_path / CONFIG_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("packing")))
    check_settings(tmp_path, (config,))
    with pytest.raises(ValueError, match="got packing=True where .* has False"):
        check_settings(tmp_path, (TrainConfig(**RUN, packing=True),))


def test_dropout_keeps_its_number_of_processes(tmp_path: Path) -> None:
    from pact.training.identity import check_same_run

    saved = {"settings": {"lora_dropout": 0.1}, "contents": {}, "processes": 2}
    (tmp_path / "run.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="with dropout must keep its number of processes"):
        check_same_run(tmp_path, saved | {"processes": 1})
    check_same_run(tmp_path, saved | {"processes": 1, "settings": {"lora_dropout": 0.0}})


def test_a_finished_run_without_its_metrics_is_resumed(settings: dict[str, Any]) -> None:
    metrics = Path(settings["output_dir"]) / "metrics.jsonl"
    metrics.unlink()
    resumed(settings)
    assert metrics.is_file()
