"""Pictures are drawn of what is measured, small enough for a repository."""

from __future__ import annotations

import struct
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.experiment import plots
from benchmarks.experiment.frame import ALL_TASKS, means
from benchmarks.experiment.grid import full_grid
from benchmarks.experiment.verdicts import OVER_REFUSAL
from benchmarks.reporting import drawing
from tests.benchmarks.experiment.synthetic import LABEL, METHODS, RELEASED_LABEL, lines, whole

MOST_BYTES = 120_000


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("records")
    return lines(whole(folder), folder)


def test_pictures_are_small_and_the_same_each_time(found: pd.DataFrame, tmp_path: Path) -> None:
    found = found[(found.section != "main") | (found.group == "benign only")]
    names = plots.draw(found, tmp_path / "new", "a-")
    assert set(names) == {"main", "trade_off", "over_time", "price"}
    again = plots.draw(found, tmp_path / "again")
    for stem, name in names.items():
        assert name == f"a-{stem.replace('_', '-')}.png" == f"a-{again[stem]}"
        content = (tmp_path / "new" / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 500 < width < 1400 and 300 < height < 1200
        assert len(content) < MOST_BYTES
        assert content == (tmp_path / "again" / again[stem]).read_bytes()


def test_a_part_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "save", lambda figure, path: path)
    grid = whole(tmp_path)
    for path in sorted(tmp_path.glob("*.json"))[1::2]:  # the first is the aligned model's
        path.unlink()
    assert len(plots.draw(lines(grid, tmp_path), tmp_path / "new")) == 4


def test_only_what_is_measured_is_drawn(
    found: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "save", lambda figure, path: path)
    late = found[(found.section == "main") & (found.group == "30 % harmful")]
    assert plots.draw(late, tmp_path) == {"main": "main.png"}  # without targets no price


def test_every_method_has_a_style_of_its_own() -> None:
    grid = full_grid()
    drawn = {line.label for line in [*grid.main, *grid.over_time]}
    drawn |= {line.group for line in grid.trade_off}
    assert set(plots.STYLES) == drawn
    assert len(set(plots.STYLES.values())) == len(drawn) > len(drawing.OTHERS)
    assert plots.STYLES[LABEL] == drawing.FIRST


def test_a_method_is_a_dot_with_its_interval_and_its_seeds(found: pd.DataFrame) -> None:
    found = found[(found.section == "main") & (found.group == "benign only")]
    axes, *_ = plots.plot_main(found).axes
    rate = found.harmful[found.label == "plain"].iloc[0]
    drawn = [list(line.get_xdata()) for line in axes.lines if {*line.get_ydata()} == {1}]
    assert drawn[:3] == [[rate.low, rate.high], list(rate.seeds), [rate.mean]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["aligned", *METHODS]


def test_the_trade_off_is_drawn_through_its_points(found: pd.DataFrame) -> None:
    panels = plots.plot_plane(found, ALL_TASKS).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Fine-tuned on benign data",
        "Fine-tuned with 10 % harmful pairs",
    ]
    curves = found[(found.section == "trade_off") & (found.group == "first tokens")]
    for axes, share in zip(panels, (0.0, 0.1), strict=True):
        drawn = next(line for line in axes.lines if line.get_label() == "first tokens")
        here = curves[curves.share == share]
        assert list(drawn.get_ydata()) == pytest.approx(list(means(here, "harmful")))
        assert list(drawn.get_xdata()) == pytest.approx(list(means(here, ALL_TASKS)))
        written = [text.get_text() for text in axes.texts]
        assert written and set(written) <= set(here.label)
        labels = {line.get_label() for line in axes.lines}
        assert {"aligned", "plain"} < labels and "ablations" not in labels


def test_the_price_shows_what_learns_and_where_both_targets_are_met(found: pd.DataFrame) -> None:
    panels = plots.plot_plane(found, OVER_REFUSAL).axes
    assert len(panels) == 2  # 30 % harmful has no targets
    main = found[(found.section == "main") & (found.label == LABEL)]
    for axes, share in zip(panels, (0.0, 0.1), strict=True):
        marks = {x.get_label(): x for x in axes.lines if x.get_markersize() == 9}
        assert RELEASED_LABEL not in marks  # it learns nothing
        ours = main[main.share == share].iloc[0]
        assert list(marks[LABEL].get_ydata()) == [ours.harmful.mean]
        assert list(marks[LABEL].get_xdata()) == [ours.benign_anywhere.mean]
        (corner,) = axes.collections
        _, low, right, _ = corner.get_paths()[0].get_extents().extents
        # the aligned model: 36 and 10 of 40
        assert (low, right) == pytest.approx((85 if share == 0.0 else 80, 28))
        # those of the made-up records get 96 of 120 tasks, plain 100
        assert "ablations" not in {x.get_label() for x in axes.lines}
    learning = found[(found.section == "main") & (found.label == "plain")][:1]
    more = pd.concat([found, learning.assign(section="ablations")], ignore_index=True)
    axes, _ = plots.plot_plane(more, OVER_REFUSAL).axes
    (dots,) = (x for x in axes.lines if x.get_label() == "ablations")
    assert len(dots.get_xdata()) == 1


def test_bands_are_of_the_seeds(found: pd.DataFrame) -> None:
    axes, *_ = plots.plot_over_time(found).axes
    plain = found[(found.section == "over_time") & (found.label == "plain")]
    drawn = next(line for line in axes.lines if line.get_label() == "plain")
    assert list(drawn.get_ydata()) == pytest.approx(list(means(plain, "harmful")))
    _, low, _, high = axes.collections[0].get_paths()[0].get_extents().extents
    assert low == min(min(x.seeds) for x in plain.harmful)
    assert high == max(max(x.seeds) for x in plain.harmful)
