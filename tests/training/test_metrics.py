"""Records as JSON lines and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pact.objective import PactConfig
from pact.training.config import FitConfig
from pact.training.metrics import METRICS_FILE, PLOT_FILE, MetricsLog, plot_metrics
from pact.training.schedule import Plan
from tests.tiny import tiny_llama
from tests.training.problem import problem

RECORD = {"loss": 2.0, "cross_entropy": 1.5, "kl": 0.5, "gate": 0.3, "tokens_per_s": 9.0}


def test_a_run_writes_one_line_a_record_and_a_picture(tmp_path: Path) -> None:
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
