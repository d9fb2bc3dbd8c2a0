"""What failed leaves nothing in the way: the same call works once the fault is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from pact.cli import main
from pact.training import loop, trackers
from pact.training.metrics import MetricsLog
from tests.cli.wrong_calls import read
from tests.cli.wrong_files import write_files

FILES = ("model", "base", "run", "train.jsonl", "prompts.jsonl", "tokens", "released.pt")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_files(folder)
    return folder


@pytest.fixture
def files(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sound files, as working folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in FILES:
        copy = shutil.copytree if (kept / name).is_dir() else shutil.copy
        copy(kept / name, folder / name)
    adapters = folder / "run" / "adapter_config.json"
    settings = json.loads(adapters.read_text())
    settings["base_model_name_or_path"] = str(folder / "model")
    adapters.write_text(json.dumps(settings))
    monkeypatch.chdir(folder)
    return folder


def argv(text: str) -> list[str]:
    (call,) = read(f"{text}\n none => none")
    return call.argv


def raising(error: Exception) -> Callable[..., None]:
    def act(*_: Any, **__: Any) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("call", "broken"),
    [
        ("TRAIN", "train.jsonl"),
        ("TRAIN", "model/model.safetensors"),
        ("TRAIN --output-dir new/deep/out", "tokens"),
        ("EVALUATE", "model/model.safetensors"),
        ("EVALUATE --output-dir new/out", "prompts.jsonl"),
        ("MERGE", "run/adapter_model.safetensors"),
        ("MERGE --output-dir new/out", "model/model.safetensors"),
        ("DISCOVER --output new/out", "base/model.safetensors"),
        ("CACHE --cache-dir cached", "model/model.safetensors"),
        ("CONVERT --output new/out", "released.pt"),
    ],
)
def test_a_damaged_file_and_then_a_whole_one(
    call: str, broken: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / broken
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    before = sorted(files.rglob("*"))
    assert main(argv(call)) == 2
    assert ": error: " in capsys.readouterr().err
    assert sorted(files.rglob("*")) == before
    path.write_bytes(whole)
    assert main(argv(call)) == 0


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("EVALUATE", "pact.evaluation.run.save_evaluation"),
        ("MERGE", "pact.training.merge.stop_at_turns"),
        ("TRAIN", "pact.training.run.loaded_inputs"),
    ],
)
def test_a_failure_amid_the_work(
    call: str, place: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(files.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(place, raising(OSError(28, "No space left on device")))
        assert main(argv(call)) == 2
    assert [path for path in sorted(files.rglob("*")) if path not in before] == []
    assert main(argv(call)) == 0


def test_a_run_that_fails_in_its_first_step(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are written by then, and its metrics begun; both go, and other files stay."""

    def fit(*_: Any, output_dir: Path, **__: Any) -> None:
        MetricsLog(output_dir)
        assert {path.name for path in output_dir.iterdir()} >= {"config.yaml", "metrics.jsonl"}
        raise ValueError("the loss must be finite, got nan")

    call = argv("TRAIN")
    with monkeypatch.context() as patch:
        patch.setattr("pact.training.run.fit", fit)
        assert main(call) == 2
        assert not (files / "out").exists()
    assert main([*call, "--learning-rate", "1e-5"]) == 0  # other settings than the first call's


class Events(GeneralTracker):
    """A tracker that writes into the folder that it is given, from its start on."""

    name, requires_logging_directory = "tensorboard", True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.file = Path(logging_dir) / run_name / "events"
        self.file.parent.mkdir(parents=True)  # a retry begins anew
        self.file.touch()

    @property
    def tracker(self) -> Events:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.file.write_text("settings\n")

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        with self.file.open("a") as file:
            file.write(f"{step}\n")


def test_what_a_tracker_began_is_in_no_retrys_way(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [Events.name])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, Events.name, Events)
    call = [*argv("TRAIN"), "--report-to", Events.name]
    events = files / "out" / trackers.TRACKERS / "pact" / "events"

    def step(*_: Any) -> None:
        assert events.read_text() == "settings\n"
        raise ValueError("the loss must be finite, got nan")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", step)
        assert main(call) == 2
        assert not (files / "out").exists()
    assert main(call) == 0
    assert events.read_text().splitlines()[1:]  # of its records


def test_a_folder_of_the_users_stays(files: Path) -> None:
    (files / "out").mkdir()
    (files / "model" / "model.safetensors").unlink()
    assert main(argv("TRAIN")) == 2
    assert list((files / "out").iterdir()) == []
