"""A disk that fills in a run: one line, the last good checkpoint stays, and the run goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.chain import Alone, left_alone
from tests.soak.victim import Settings, Victim, left_behind

SETTINGS = Settings(examples=40, steps=6)
ROOM_KIB = (8, 48, 96, 160, 224, 288)
"""From less than the cache takes to less than the trained model does, beside what stays free."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return left_alone(tmp_path_factory.mktemp("disk"), SETTINGS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, whose size `_resize` sets."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system must be mounted, which takes root: {mounted.stderr}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _resize(disk: Path, kib: int) -> None:
    command = ["mount", "-o", f"remount,size={kib}k", str(disk)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("kib", ROOM_KIB)
def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(
    kib: int, alone: Alone, disk: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    _resize(disk, kib)
    full = Victim(alone.folder, disk / "run", log=log)
    assert full.ended() == 2, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("pact train: error:")]
    assert "No space left" in line or "full" in line, line
    _resize(disk, 4096)
    more = Victim(alone.folder, disk / "run", log=log)
    assert more.ended() == 0, log.read_text()
    assert left_behind(disk / "run") == alone.left
