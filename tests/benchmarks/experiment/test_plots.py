"""Pictures are drawn of what is measured, small enough for a repository."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks.experiment import plots
from benchmarks.experiment.pooled import Results, pool_grid
from tests.benchmarks.experiment.synthetic import METHODS, Grid, whole

DRAWN = pytest.mark.parametrize(
    "draw", [plots.plot_main, plots.plot_trade_off, plots.plot_over_time]
)
MOST_BYTES = 120_000


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("records")
    return pool_grid(whole(folder), folder)


@DRAWN
def test_a_picture_is_a_small_png(draw, results: Results, tmp_path: Path) -> None:
    path = draw(results, tmp_path / "new" / "picture.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 500 < width < 1400 and 300 < height < 1200
    assert len(content) < MOST_BYTES


@DRAWN
def test_the_same_results_draw_the_same_bytes(draw, results: Results, tmp_path: Path) -> None:
    first, second = (draw(results, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


@DRAWN
def test_without_records_nothing_is_drawn(draw, tmp_path: Path) -> None:
    empty = tmp_path / "records"
    empty.mkdir()
    for grid in (Grid(), whole(tmp_path)):
        assert draw(pool_grid(grid, empty), tmp_path / "picture.png") is None
    assert not (tmp_path / "picture.png").exists()


@DRAWN
def test_a_picture_of_a_part_is_drawn(draw, tmp_path: Path) -> None:
    half = tmp_path / "records"
    half.mkdir()
    grid = whole(half)
    for place, path in enumerate(sorted(half.glob("*.json"))):
        if place % 2:
            path.unlink()
    assert draw(pool_grid(grid, half), tmp_path / "picture.png").is_file()


def test_a_method_has_one_style_everywhere(results: Results) -> None:
    styles = plots.styles(results)
    assert set(styles) == {"aligned", *METHODS}
    assert len(set(styles.values())) == len(styles)
    assert styles["PACT recommended"] == plots.RECOMMENDED
    without_main = plots.styles(results._replace(main=[]))
    assert without_main["plain"] == styles["plain"]
    assert without_main["PACT recommended"] == styles["PACT recommended"]


def test_all_styles_differ() -> None:
    styles = [plots.ALIGNED, plots.PLAIN, plots.RECOMMENDED, *plots.OTHERS]
    assert len({style.colour for style in styles}) == len({s.marker for s in styles}) == len(styles)


def test_the_trade_off_is_drawn_through_its_points(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: saved.append(figure))
    plots.plot_trade_off(results, tmp_path / "picture.png")
    panels = saved[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Fine-tuned on benign data",
        "Fine-tuned with 10 % harmful pairs",
    ]
    for axes, share in zip(panels, (0.0, 0.1), strict=True):
        drawn = next(line for line in axes.lines if line.get_label() == "first tokens")
        lines = [one for one in results.trade_off if one.group == "first tokens"]
        here = [one for one in lines if one.cell.harmful_share == share]
        expected = [100 * one.counts["harmful"].rate.rate for one in here]
        assert list(drawn.get_ydata()) == pytest.approx(expected)
