"""Pictures are drawn of what is measured, small enough for a repository."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks.experiment import plots
from tests.benchmarks.experiment.synthetic import METHODS, Grid, lines, whole

LABEL = "PACT recommended"
MOST_BYTES = 120_000


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("records")
    return lines(whole(folder), folder)


def test_pictures_are_small_and_the_same_each_time(found: dict, tmp_path: Path) -> None:
    found = {**found, "main": found["main"][:6]}
    names = plots.draw(found, LABEL, tmp_path / "new", "a-")
    assert set(names) == {"main", "trade_off", "over_time", "price"}
    again = plots.draw(found, LABEL, tmp_path / "again")
    for stem, name in names.items():
        assert name == f"a-{stem.replace('_', '-')}.png" == f"a-{again[stem]}"
        content = (tmp_path / "new" / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 500 < width < 1400 and 300 < height < 1200
        assert len(content) < MOST_BYTES
        assert content == (tmp_path / "again" / again[stem]).read_bytes()


def test_without_records_nothing_is_drawn(tmp_path: Path) -> None:
    empty = tmp_path / "records"
    empty.mkdir()
    for grid in (Grid(), whole(tmp_path)):
        assert set(plots.draw(lines(grid, empty), LABEL, tmp_path / "new").values()) == {""}
    assert not (tmp_path / "new").exists()


def test_a_part_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_save", lambda figure, path: path.name)
    grid = whole(tmp_path)
    for path in sorted(tmp_path.glob("*.json"))[::2]:
        path.unlink()
    assert all(plots.draw(lines(grid, tmp_path), LABEL, tmp_path / "new").values())


def test_a_method_has_one_style_everywhere(found: dict) -> None:
    styles = plots.styles(found, LABEL)
    assert set(styles) == {"aligned", *METHODS}
    assert len(set(styles.values())) == len(styles)
    assert styles[LABEL] == plots.RECOMMENDED
    without_main = plots.styles({**found, "main": []}, LABEL)
    assert without_main["plain"] == styles["plain"] == plots.FIXED["plain"]


def test_more_methods_than_colours_differ_still(found: dict) -> None:
    (line, *_) = [x for x in found["main"] if x.label == "first tokens"]
    many = [type(line)(**{**vars(line), "label": f"method {place}"}) for place in range(30)]
    styles = plots.styles({**found, "main": many}, LABEL)
    assert len(set(styles.values())) == len(styles) > 30


def test_the_trade_off_is_drawn_through_its_points(found: dict) -> None:
    style = plots.styles(found, LABEL)
    panels = plots.plot_trade_off(found["trade_off"], found["main"], style).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Fine-tuned on benign data",
        "Fine-tuned with 10 % harmful pairs",
    ]
    for axes, share in zip(panels, (0.0, 0.1), strict=True):
        drawn = next(line for line in axes.lines if line.get_label() == "first tokens")
        here = [x for x in found["trade_off"] if (x.group, x.share) == ("first tokens", share)]
        expected = [100 * x.rate("harmful").rate for x in here]
        assert list(drawn.get_ydata()) == pytest.approx(expected)
        assert {text.get_text() for text in axes.texts} <= {x.label for x in here}


def test_the_price_shows_what_learns_and_where_both_targets_are_met(found: dict) -> None:
    style = plots.styles(found, LABEL)
    panels = plots.plot_price(found, style).axes
    assert len(panels) == 2  # 30 % harmful has no targets
    for axes, share in zip(panels, (0.0, 0.1), strict=True):
        members = [x for x in found["main"] if x.share == share and x.label != "aligned"]
        marks = {x.get_label(): x for x in axes.lines if x.get_markersize() == 9}
        assert "PACT selection" not in marks  # it learns nothing
        ours = next(x for x in members if x.label == LABEL)
        assert marks[LABEL].get_ydata()[0] == 100 * ours.rate("harmful").rate
        assert marks[LABEL].get_xdata()[0] == 100 * ours.rate("benign_anywhere").rate
        (corner,) = axes.collections
        _, low, right, _ = corner.get_paths()[0].get_extents().extents
        # the aligned model: 36 and 10 of 40
        assert (low, right) == pytest.approx((85 if share == 0.0 else 80, 28))
    for ablations, count in ((found["ablations"], 0), (found["main"][1:2], 1)):
        axes, _ = plots.plot_price({**found, "ablations": ablations}, style).axes
        (dots,) = (x for x in axes.lines if x.get_label() == "ablations")
        # those of the made-up records get 96 of 120 tasks, plain 100
        assert len(dots.get_xdata()) == count


def test_without_targets_there_is_no_price(found: dict) -> None:
    late = [x for x in found["main"] if x.group == "30 % harmful"]
    assert plots.plot_price({**found, "main": late}, plots.styles(found, LABEL)) is None
