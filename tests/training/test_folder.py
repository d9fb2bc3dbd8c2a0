"""One run at a time in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pact.training.folder import HOLDER_FILE, LOCK_FILE, held_folder

HOLD = """
import sys, time
from pathlib import Path
from pact.training.folder import held_folder
with held_folder(Path(sys.argv[1]), resume=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_never_share_a_folder_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"held by process {other.pid} on "):
                with held_folder(folder, resume):
                    pytest.fail("two runs hold one folder")
        os.kill(other.pid, signal.SIGKILL)
    with held_folder(folder, resume=False):
        assert str(os.getpid()) in (folder / HOLDER_FILE).read_text()


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with pytest.raises(ZeroDivisionError), held_folder(folder, resume=False):
        raise ZeroDivisionError
    assert not folder.exists()
    with held_folder(folder, resume=False):
        (folder / "config.yaml").write_text("x: 1")
    assert {path.name for path in folder.iterdir()} <= {"config.yaml", LOCK_FILE}
    with held_folder(folder, resume=True):
        pass
    with pytest.raises(ValueError, match="output_dir must be empty"), held_folder(folder, False):
        pass


def test_what_a_killed_run_was_writing_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.1.partial").write_text("half of")
    (tmp_path / "best.partial").mkdir()
    with held_folder(tmp_path, resume=False):
        assert not list(tmp_path.glob("*.partial"))
