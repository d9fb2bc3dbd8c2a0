"""Tables show the pooled numbers, and say what is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.experiment import tables
from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.pooled import pool, pool_curve
from tests.benchmarks.experiment.synthetic import (
    ALIGNED,
    COSTS,
    METHODS,
    Line,
    ablation_lines,
    measures,
    over_time_lines,
    save,
    seeded,
    single_task_lines,
    trade_off_lines,
)

PLAIN, OURS = METHODS["plain"], METHODS["PACT recommended"]
LABEL = "PACT recommended"


def rows(table: str) -> list[list[str]]:
    """Cells below the head; every line has as many as the head."""
    lines = [line[2:-2].split(" | ") for line in table.splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    return lines[2:]


def test_the_main_tables_by_hand(tmp_path: Path) -> None:
    lines = [Line("set", "aligned", (ALIGNED,)), seeded("set", "plain", PLAIN, (0, 1))]
    lines.append(seeded("set", LABEL, OURS, (0, 1)))
    save(ALIGNED, measures(36, 4, confidence=0.632), tmp_path)
    for line, refused in zip(lines[1:], (8, 30), strict=True):
        for cell in line.cells:
            found = measures(refused + cell.seed, 54 - 9 * cell.seed, confidence=0.25)
            save(cell, found, tmp_path)
    pooled = [pool(line, tmp_path) for line in lines]

    alignment = rows(tables.alignment_table(pooled, LABEL))
    # 36/40, 37/40 anywhere, 36 // 2 = 18/40 after the prefill, 36 // 4 = 9/40 outside, 10/40 over
    assert alignment[0] == [
        "aligned",
        "90 % [77-96]",
        "36 of 40",
        "92 % [80-97]",
        "45 % [31-60]",
        "22 % [12-38]",
        "25 % [14-40]",
    ]
    assert alignment[1][:3] == ["plain", "21 % [14-31]", "8, 9 of 40"]  # 17 of 80
    assert alignment[2][:3] == [f"**{LABEL}**", "76 % [66-84]", "30, 31 of 40"]  # 61 of 80

    odds = rows(tables.odds_table(pooled, LABEL))
    # 20 * 0.632 - 4 and - 8; then 20 * 0.25 - 4 and - 8, both 20 * (0.632 - 0.25) lower
    assert odds[0] == ["aligned", "+8.6", "-", "+4.6", "-", "90 % [77-96]"]
    assert odds[1] == ["plain", "+1.0", "-7.6", "-3.0", "-7.6", "21 % [14-31]"]

    utility = rows(tables.utility_table(pooled, LABEL, COSTS, TASKS))
    # classification 54 + 45 of 120, extraction 50 + 41 of 120; nats 2.9 - 54/90 and 2.9 - 45/90
    assert utility[1] == [
        "plain",
        "82 % [75-88]",
        "76 % [67-83]",
        "2.350 (2.300-2.400)",
        "11.81 (11.25-12.38)",
        "0.450",
        "0.250",
        "0.632",
        "742",  # the median of 740, 742 and 751
        "1783",
    ]
    assert utility[0][-2:] == ["-", "-"] and utility[0][5] == "-"  # nothing was trained
    assert utility[2][-2:] == ["769", "1852"]


def test_a_cost_that_is_missing_is_not_measured(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    table = tables.utility_table([pool(Line("set", "plain", (PLAIN,)), tmp_path)], LABEL, {}, TASKS)
    assert rows(table)[0][-2:] == ["not measured", "-"]


def test_missing_lines_and_seeds(tmp_path: Path) -> None:
    lines = [seeded("set", "plain", PLAIN), seeded("set", LABEL, OURS)]
    save(lines[1].cells[2], measures(30, 50), tmp_path)
    table = rows(tables.alignment_table([pool(line, tmp_path) for line in lines], LABEL))
    assert table[0] == ["plain", "not measured", *["-"] * 5]
    assert table[1][:3] == [f"**{LABEL}** (1 of 3 seeds)", "75 % [60-86]", "30 of 40"]


def test_seeds_of_unlike_size_show_their_own(tmp_path: Path) -> None:
    line = seeded("set", "plain", PLAIN, (0, 1))
    save(line.cells[0], measures(8, 50), tmp_path)
    short = measures(3, 50)
    save(line.cells[1], replace(short, counts={**short.counts, "harmful": (3, 10)}), tmp_path)
    table = tables.alignment_table([pool(line, tmp_path)], LABEL)
    assert rows(table)[0][2] == "8/40, 3/10"


def test_ablations_are_grouped_and_their_base_is_bold(tmp_path: Path) -> None:
    lines = [pool(line, tmp_path) for line in ablation_lines(tmp_path)]
    table = rows(tables.ablation_table(lines, TASKS))
    assert [row[0] for row in table] == ["K", "", "", "gate", "", "token source", "", ""]
    assert [row[1] for row in table if "*" in row[1]] == ["**200**", "**off**", "**p_diff**"]
    assert table[6][2] == "24 % [16-34]"  # 9 + 10 of 80
    assert tables.base_of(lines) == OURS
    assert tables.base_of(lines[:3]) is None  # each stands once


def test_a_single_task_is_judged_by_its_own_accuracy(tmp_path: Path) -> None:
    save(ALIGNED, measures(36, 6), tmp_path)
    lines = [pool(line, tmp_path) for line in single_task_lines(tmp_path)]
    table = rows(tables.single_task_table(lines))
    assert [row[0] for row in table] == ["classification", "", "", "extraction", "", ""]
    # aligned 6 and 2 of 60, plain 55 and 51 of 60
    assert [row[6][:4] for row in table] == ["10 %", "92 %", "92 %", "3 % ", "85 %", "85 %"]


def test_the_trade_off_lists_every_share(tmp_path: Path) -> None:
    line = trade_off_lines(tmp_path)[0]
    parts = [pool(line._replace(cells=(cell,)), tmp_path) for cell in line.cells]
    table = rows(tables.trade_off_table(parts))
    assert [row[:3] for row in table] == [
        ["PACT selection", "0 %", "0.1"],
        ["PACT selection", "10 %", "0.1"],
    ]
    methods = rows(tables.varied_table(parts, LABEL))
    assert methods == [
        [
            "PACT selection",
            "cross-entropy and the KL among K = 50 safety tokens, lambda 0.1, gated",
        ]
    ]


def test_over_time_lists_every_step(tmp_path: Path) -> None:
    curves = [pool_curve(line, tmp_path) for line in over_time_lines(tmp_path)]
    table = rows(tables.over_time_table(curves))
    assert [row[1] for row in table] == ["0", "8", "16", "24", "32", "40", "48"] * 2
    assert table[0][:3] == ["plain", "0", "90 % [77-96]"]
    assert table[6][2] == "20 % [14-28]"  # 7 + 8 + 9 of 120


def test_settings_are_told_from_the_cell() -> None:
    raised = replace(OURS, pact=replace(OURS.pact, kl_margin=1.5))
    assert "the reference raised by a margin of 1.5 nats" in tables.describe(raised)
    words = tables.describe(replace(OURS, token_source="random", full_finetuning=True))
    assert words == (
        "cross-entropy and the KL of the true confidences on K = 200 random safety tokens, "
        "lambda 2.5, those of positive weight alone, answer step t weighs exp(-t / 4), no gate; "
        "all weights"
    )
    assert tables.describe(OURS, "1, 2").count("lambda 1, 2") == 1
    assert tables.describe(Cell(method="full_kl", strength=0.7)).endswith("lambda 0.7")
    assert tables.describe(Cell(method="mixing", refusal_share=0.05)).endswith("share 0.05")
    assert tables.describe(Cell(method="first_tokens", strength=1.5)).endswith("strength 1.5")
