"""Lines in place of a bar where there is no terminal, by a clock of the test's own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pact.common.progress import INTERVAL_S, Lines, counted, progress_bar
from pact.discovery import SafetyTokens
from tests.tiny import save_tiny
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_every_so_often_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "pact"), Lines(1000, "train", "step", 200, clock) as lines:
        for step in range(240):
            clock.now_s += 0.25  # which adds up exactly
            lines.set_postfix_str(f"loss {step}")
            lines.update()
    said = [record.message for record in caplog.records]
    assert INTERVAL_S == 120 * 0.25
    assert said == [
        "train: 320 of 1000 steps in 30 s, 3 min left; loss 119",  # 680 more at 4 a second
        "train: 440 of 1000 steps in 60 s, 2 min left; loss 239",
    ]


def test_nothing_is_said_twice_or_of_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pact"):
        with Lines(3, "judge", "answer") as lines:
            lines.update(3)
        assert [record.message for record in caplog.records] == ["judge: 3 of 3 answers in 0 s"]
        with pytest.raises(ZeroDivisionError), Lines(3, "judge", "answer") as lines:
            lines.update()
            raise ZeroDivisionError
        assert list(counted("ab", 2, "read", "letter", show=False)) == ["a", "b"]
    assert len(caplog.records) == 1


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress_bar(3, "read", "line"), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress_bar(3, "read", "line", initial=1)
    assert not isinstance(bar, Lines) and (bar.n, bar.total) == (1, 3)
    bar.close()


def test_output_that_is_no_longer_read_ends_a_command_quietly(tmp_path: Path) -> None:
    """As `pact show ... | head -1` does."""
    tokens = tmp_path / "tokens.safetensors"
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(tokens)
    arguments = ["show", "--tokens", str(tokens), "--tokenizer", str(save_tiny(tmp_path / "model"))]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pact", *arguments], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
