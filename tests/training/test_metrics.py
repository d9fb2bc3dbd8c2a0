"""Records as JSON lines and as a picture."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pact.objective import PactConfig
from pact.training import metrics
from pact.training.config import FitConfig
from pact.training.metrics import METRICS_FILE, PLOT_FILE, MetricsLog, plot_metrics
from pact.training.schedule import Plan
from tests.tiny import tiny_llama
from tests.training.problem import problem

RECORD = {"loss": 2.0, "cross_entropy": 1.5, "kl": 0.5, "gate": 0.3, "tokens_per_s": 9.0}


def test_a_run_writes_one_line_a_record_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "plot_metrics", plot_metrics)
    given = problem(PactConfig(over="selection"))
    records = given.fit(tiny_llama(), FitConfig(max_steps=3), output_dir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines == records
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss",
        "cross_entropy",
        "kl",
        "gate",
        "rows",
        "tokens_per_s",
        "learning_rate",
        "grad_norm",
    }
    assert lines[0]["loss"] == pytest.approx(lines[0]["cross_entropy"] + lines[0]["kl"])
    assert 0 < lines[0]["gate"] < 1 and lines[0]["tokens_per_s"] > 0
    indices = Plan(FitConfig(), len(given.dataset)).indices(0)
    first = given.collator([given.dataset[n] for n in indices])
    assert lines[0]["rows"] == first["row_target"].numel()
    assert (tmp_path / PLOT_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_log_drops_what_is_made_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.append(RECORD | {"step": step})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # the machine went away in the middle of a line
    resumed = MetricsLog(tmp_path, resume_step=2)
    resumed.append(RECORD | {"step": 3, "loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 2.0), (2, 2.0), (3, 1.0)]
    assert MetricsLog(tmp_path).records == []  # a new run starts an empty file
    assert (tmp_path / METRICS_FILE).read_text() == ""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The last step of the records in each picture that is drawn, in place of the picture."""
    steps: list[int] = []
    monkeypatch.setattr(
        metrics, "plot_metrics", lambda records, _: steps.append(int(records[-1]["step"]))
    )
    return steps


@pytest.mark.parametrize(("every_s", "steps"), [(0.0, [1, 2, 3, 4]), (1e9, [4])])
def test_a_save_draws_what_is_due_and_the_end_draws_always(
    every_s: float,
    steps: list[int],
    drawn: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "PLOT_EVERY_S", every_s)
    config = FitConfig(max_steps=4, save_every=1)
    problem(None).fit(tiny_llama(), config, output_dir=tmp_path)
    assert drawn == steps


def test_no_picture_of_a_run_on_its_way_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[weakref.ref[Figure]] = []

    def save(figure: Figure, path: Path, **options: object) -> None:
        figures.append(weakref.ref(figure))
        path.touch()

    monkeypatch.setattr(Figure, "savefig", save)
    monkeypatch.setattr(metrics, "PLOT_EVERY_S", 0.0)
    monkeypatch.setattr(metrics, "plot_metrics", plot_metrics)
    log = MetricsLog(tmp_path)
    log.append(RECORD | {"step": 1})
    gc.disable()
    try:
        log.plot_if_due()
        assert [figure() for figure in figures] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("draws", [True, False])
def test_a_run_that_is_cut_off_has_a_current_picture(
    error: type[BaseException],
    draws: bool,
    drawn: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what went wrong is said, also where it cannot be drawn."""

    def after_step(done: int) -> None:
        if done == 3:
            raise error("the third step")

    if not draws:
        monkeypatch.setattr(metrics, "plot_metrics", lambda *_: 1 / 0)
    config = FitConfig(max_steps=5, save_every=1)
    with pytest.raises(error, match="the third step"):
        problem(None).fit(tiny_llama(), config, output_dir=tmp_path, after_step=after_step)
    assert drawn == ([3] if draws else [])


def test_a_picture_is_whole_or_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_: Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", save)
    (tmp_path / PLOT_FILE).write_bytes(b"before")
    with pytest.raises(OSError):
        plot_metrics([RECORD | {"step": 1}], tmp_path / PLOT_FILE)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_steps_that_were_left_out_alone_are_no_picture(tmp_path: Path) -> None:
    plot_metrics([{"step": 1, "epoch": 0.1, "skipped_steps": 1}], tmp_path / PLOT_FILE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("zero", "titles"),
    [
        ((), ["Loss", "KL", "Gate", "Speed"]),
        (("kl", "gate"), ["Loss", "Speed"]),  # plain fine-tuning
        (("gate",), ["Loss", "KL", "Speed"]),
    ],
)
def test_only_what_a_run_had_is_drawn(
    zero: tuple[str, ...], titles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    records = [RECORD | dict.fromkeys(zero, 0.0) | {"step": step} for step in range(1, 100)]
    plot_metrics(records, tmp_path / "plot.png")
    axes = drawn[0].axes
    assert [panel.get_title("left").split()[0].rstrip(",") for panel in axes] == titles
    assert [line.get_label() for line in axes[0].lines[1::2]] == ["loss", "cross-entropy"]
