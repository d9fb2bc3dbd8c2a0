"""`pact train --resume` after what may befall a run's folder, and beside another run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pact.cli import main
from pact.training.folder import HOLDER_FILE, LOCK_FILE, check_output, held_folder
from pact.training.manifest import write_manifest
from tests.cli.wrong_calls import WHOLE
from tests.cli.wrong_files import write_files

REPOSITORY = Path(__file__).parents[2]
FLAGS = ["--output-dir", "run", "--resume", "--save-every", "1", "--max-length", "200"]
RESUMED = [*WHOLE["TRAIN"].split(), *FLAGS]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_files(folder)
    return folder


@pytest.fixture
def files(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`run`, a finished run of one step, and what it read, as working folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("model", "run"):
        shutil.copytree(kept / name, folder / name)
    for name in ("train.jsonl", "tokens"):
        shutil.copy(kept / name, folder)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("left", ["", "model: ./mod", "[" * 5000, "- a", "epochs: [", "\xff"])
def test_settings_that_are_damaged_or_gone(left: str, files: Path) -> None:
    """The checkpoint has them too, and they are written again."""
    weights = (files / "run" / "adapter_model.safetensors").read_bytes()
    path = files / "run" / "config.yaml"
    path.write_bytes(left.encode("latin-1")) if left else path.unlink()
    assert main([*RESUMED, "--learning-rate", "3e-4"]) == 2
    assert main(RESUMED) == 0
    assert (files / "run" / "adapter_model.safetensors").read_bytes() == weights
    if left != "model: ./mod":  # half of the settings are settings
        assert yaml.safe_load(path.read_text())["max_length"] == 200


@pytest.mark.parametrize("left", ["[" * 5000, "- a", "epochs: [", "\xff"])
def test_damaged_settings_of_a_run_without_a_checkpoint(left: str, files: Path) -> None:
    """It begins anew."""
    shutil.rmtree(files / "run" / "checkpoints")
    (files / "run" / "config.yaml").write_bytes(left.encode("latin-1"))
    assert main(RESUMED) == 0
    assert len(list((files / "run" / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("left", [None, 0, 1, 40, -1])
def test_a_finished_run_whose_metrics_are_gone_or_cut(left: int | None, files: Path) -> None:
    """Up to a line's last character but one, where one line is a record."""
    path = files / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    weights = (files / "run" / "adapter_model.safetensors").read_bytes()
    path.unlink() if left is None else path.write_bytes(whole[:left])
    assert main(RESUMED) == 0
    assert (files / "run" / "adapter_model.safetensors").read_bytes() == weights
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_finished_run_is_not_made_longer(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(files)
    assert main([*RESUMED, "--max-steps", "3"]) == 2
    assert "got max_steps=3 where" in capsys.readouterr().err
    assert contents(files) == before


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"settings": 1}', "[" * 50_000])
@pytest.mark.parametrize("is_signed", [False, True], ids=["damaged", "signed"])
def test_a_checkpoint_that_does_not_say_its_run(
    text: str, is_signed: bool, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (files / "run" / "checkpoints").iterdir()
    (checkpoint / "run.json").write_text(text)
    if is_signed:
        (checkpoint / "manifest.json").unlink()
        write_manifest(checkpoint, step=1)
    before = contents(files)
    assert main(RESUMED) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pact train: error: ") and "run.json" in error
    assert contents(files) == before


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        ({"model": "model"}, "./model/../model"),
        ({"model": "link"}, "model"),
        ({"model": "model"}, "link"),
        ({"model": "model", "reference_model": "other"}, "other"),
        ({"model": "run", "resume": True}, "run"),
        ({"model": "run"}, "run/base/out"),
        ({"model": "run"}, "run/checkpoints"),
        ({"model": "run", "resume": True}, "model"),
        ({"train_file": "rows", "model": "model"}, "rows/a/out"),
    ],
)
def test_a_run_never_writes_into_what_it_reads(
    inputs: dict[str, Any], output: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "link").symlink_to(files / "model")
    shutil.copytree(files / "model", files / "other")
    (files / "rows").mkdir()
    shutil.copy(files / "train.jsonl", files / "rows")
    adapters = files / "run" / "adapter_config.json"
    settings = json.loads(adapters.read_text()) | {"base_model_name_or_path": str(files / "model")}
    adapters.write_text(json.dumps(settings))
    before = contents(files)
    given = {"train_file": "train.jsonl", "tokens": "tokens", "output_dir": output} | inputs
    (files / "run.yaml").write_text(json.dumps(given))
    assert main(["train", "--config", "run.yaml"]) == 2
    assert "must be apart from what the run reads" in capsys.readouterr().err
    (files / "run.yaml").unlink()
    assert contents(files) == before


def test_a_home_of_nobody_is_refused_in_programs_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got ~nosuchuser/model .*write the folder out"):
        check_output(tmp_path / "out", {"model": "~nosuchuser/model"})


HOLD = """
import sys, time
from pathlib import Path
from pact.training.folder import held_folder
with held_folder(Path("run"), resume=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_and_after_a_dead_one(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(files)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert main(RESUMED) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"run is held by process {other.pid} on " in error and "wait for it" in error
        os.kill(other.pid, signal.SIGKILL)
    assert (files / "run" / HOLDER_FILE).exists()
    assert main(RESUMED) == 0
    left = {name for name in contents(files) if name not in before}
    assert {Path(name).name for name in left} <= {LOCK_FILE}


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError()])
def test_where_nothing_can_be_locked_the_log_says_so(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("pact.training.folder.FileLock.acquire", acquire)
    folder = tmp_path / "a" / "run"
    with held_folder(folder, resume=False):
        assert "start no other run that writes there" in caplog.text
    assert not folder.parent.exists()
