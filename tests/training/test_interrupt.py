"""Ctrl-C and SIGTERM, sent to the process itself at known places."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pact.cli import main
from pact.objective import PactConfig
from pact.training import loop
from pact.training.checkpoint import CHECKPOINTS, whole_checkpoint
from pact.training.config import FitConfig
from pact.training.interrupt import SignalWatch, StoppedBySignal
from tests.tiny import save_tiny, tiny_llama
from tests.training.problem import conversations, parameters_of, problem

SETTINGS: dict[str, Any] = {"max_steps": 5, "learning_rate": 1e-2, "save_every": 100}


def sends(number: int, at: int) -> Any:
    """An `after_step` that sends a signal when `at` steps are done."""

    def after_step(done: int) -> None:
        if done == at:
            signal.raise_signal(number)

    return after_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_at_hand_is_finished_and_saved(number: signal.Signals, tmp_path: Path) -> None:
    given = problem(PactConfig())
    whole, stopped, resumed = tiny_llama(), tiny_llama(), tiny_llama()
    given.fit(whole, FitConfig(**SETTINGS))
    before = signal.getsignal(number)
    with pytest.raises(
        StoppedBySignal, match=f"by {number.name} after step 3; .*--resume"
    ) as ended:
        given.fit(stopped, FitConfig(**SETTINGS), output_dir=tmp_path, after_step=sends(number, 2))
    assert ended.value.exit_code == 128 + number  # 130, 143
    assert signal.getsignal(number) is before
    assert whole_checkpoint(tmp_path) == tmp_path / CHECKPOINTS / "step-00000003"
    config = FitConfig(**SETTINGS, resume=True)
    records = given.fit(resumed, config, output_dir=tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_checkpoints_it_says_that_none_is_kept(tmp_path: Path) -> None:
    config = FitConfig(**SETTINGS | {"save_every": None})
    with pytest.raises(StoppedBySignal, match="after step 2; no checkpoint is kept"):
        problem(None).fit(
            tiny_llama(), config, output_dir=tmp_path, after_step=sends(signal.SIGTERM, 1)
        )
    assert not (tmp_path / CHECKPOINTS).exists()


def test_in_the_last_step_the_run_is_done(tmp_path: Path) -> None:
    given = problem(None)
    records = given.fit(
        tiny_llama(),
        FitConfig(**SETTINGS),
        output_dir=tmp_path,
        after_step=sends(signal.SIGTERM, 4),
    )
    assert records[-1]["step"] == 5


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    reached = []

    def after_step(done: int) -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(done)
        signal.raise_signal(signal.SIGINT)
        reached.append(done)

    with pytest.raises(StoppedBySignal, match="by a second SIGINT, within a step"):
        problem(None).fit(
            tiny_llama(), FitConfig(**SETTINGS), output_dir=tmp_path, after_step=after_step
        )
    assert reached == [1]


def test_handlers_of_others_stay(tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with SignalWatch() as watch:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"] and watch.number == 0


def test_another_thread_listens_to_nothing() -> None:
    handlers = []

    def run() -> None:
        with SignalWatch():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_the_signals_code(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And `--resume` ends the run."""
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    flags = ["--model", str(save_tiny(tmp_path / "model")), "--method", "plain"]
    flags += ["--train-file", str(tmp_path / "train.jsonl"), "--max-steps", "3"]
    flags += ["--output-dir", str(tmp_path / "run"), "--log-every", "2"]
    own = loop.optimizer_step

    def told(*given: Any) -> Any:
        signal.raise_signal(number)
        return own(*given)

    with monkeypatch.context() as first:
        first.setattr(loop, "optimizer_step", told)
        assert main(["train", *flags]) == code
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "after step 1" in one]
    assert line.startswith(f"pact train: stopped by {number.name}") and "--resume" in line
    assert main(["train", *flags, "--resume"]) == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1, 2, 3]
