"""The report: every figure has a verdict, and what was not measured says so with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cases.plans import BASE, EAGER, OURS, RELEASED, Plan, lines, plans, title
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.measuring.machine import NO_GPU
from benchmarks.reporting.report import number, render
from benchmarks.reporting.results import Result
from benchmarks.reporting.targets import targets

FAST_MS, SLOW_MS = 10.0, 45.0


def results_of(plan: Plan, device: str = "cpu", machine: str = "two cores") -> list[Result]:
    """Made up: we take 10 ms and 64 MiB, others 45 ms and 1000 MiB, the products 9 ms."""
    line = Result(
        case=plan.case,
        device=device,
        machine=machine,
        implementation=OURS,
        baseline=plan.baseline,
        setting="{}",
        rounds=5,
        p20_ms=FAST_MS,
        p50_ms=FAST_MS,
        p80_ms=FAST_MS,
        tflop_per_s=720.0,
        of_gemms=0.9,
        of_cross_entropy=1.02 if plan.case.op == "pact_loss" else None,
        of_baseline=FAST_MS / SLOW_MS,
        extra_mib=66.0,
        output_mib=2.0,
        error_share=0.5,
        threads=2,
        torch="9.9.9",
        commit="abc1234",
        date="2031-02-03 04:05",
        bf16="AVX-512 BF16",
        command="python -m benchmarks run",
    )
    slow = replace(line, p50_ms=SLOW_MS, of_gemms=0.2, extra_mib=1000.0)
    lines = [line, replace(slow, implementation=plan.baseline)]
    lines += [replace(slow, implementation="theirs", setting='{"chunk": 7}', version="1.2")]
    floor = replace(line, extra_mib=None, p50_ms=9.0, tflop_per_s=791.0, of_gemms=1.0)
    lines += [replace(floor, implementation=GEMMS)]
    if plan.case.op == "pact_loss":
        lines += [replace(floor, implementation=CROSS_ENTROPY_ALONE, of_gemms=0.9)]
    return lines


@pytest.fixture
def measured() -> list[Result]:
    return [result for plan in plans("cpu") for result in results_of(plan)]


def figure_lines(text: str) -> Iterator[list[str]]:
    """Cells of the figures' tables."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("|") and cells[-1].split(":")[0] in ("met", "missed", "not measured"):
            yield cells


def verdicts(device: str, results: list[Result]) -> dict[str, tuple[str, str, str]]:
    return {
        each.name: (each.target, f"{each.value:.3g}" if each.measured else "", each.verdict)
        for each in targets(device, results)
    }


def test_figures_on_a_cpu(measured: list[Result]) -> None:
    found = verdicts("cpu", measured)
    base = next(plan.case for plan in plans("cpu") if plan.case.op == "linear_cross_entropy")
    trained = next(plan.case for plan in plans("cpu") if plan.case.trainable_head)
    name = "cross-entropy, {}: speed / that of its GEMMs"
    assert found[name.format(title(base))] == (">= 0.8", "0.9", "met")
    assert found[name.format(title(trained))] == (">= 0.85", "0.9", "met")
    wanted = [4.0, 8.0, 3.5, 8.0]
    against = [plan for plan in plans("cpu") if plan.only == (OURS, RELEASED)]
    released = [plan for plan in against if plan.case.over == "selection"]
    for plan, bound in zip(released, wanted, strict=True):
        loss = f"loss with KL, {title(plan.case)}"
        verdict = "met" if bound <= 4.5 else "missed"
        assert found[f"{loss}: time of released / ours"] == (f">= {bound:g}", "4.5", verdict)
        memory = found[f"{loss}: peak extra memory of ours / released"]
        assert memory == ("<= 0.1", "0.066", "met")
    price = [value for key, value in found.items() if "time / cross-entropy alone" in key]
    assert ("<= 1.03", "1.02", "met") in price and ("", "1.02", "") in price
    (growth,) = (value for key, value in found.items() if "growth of memory" in key)
    assert growth == ("<= 1.1", "1", "met")


def test_every_cross_entropy_is_compared_with_its_fastest_peer(measured: list[Result]) -> None:
    case = plans("cpu")[0].case
    found = verdicts("cpu", measured)
    slower = [
        replace(each, p50_ms=9.5) if each.implementation == "theirs" else each for each in measured
    ]  # faster than ours, but slower than the products alone
    name = f"cross-entropy, {title(case)}: time of {{}} / ours"
    assert found[name.format(EAGER)] == (">= 1", "4.5", "met")
    assert verdicts("cpu", slower)[name.format("theirs")] == (">= 1", "0.95", "missed")
    cases = {plan.case for plan in plans("cpu") if plan.case.op == case.op}
    assert sum(key.endswith("/ ours") and key.startswith("cross") for key in found) == len(cases)


def test_figures_on_a_gpu() -> None:
    card = [each for plan in plans("gpu") for each in results_of(plan, "cuda", "A card")]
    found = verdicts("cuda", card)
    base = title(next(plan.case for plan in plans("gpu") if plan.varied == BASE))
    assert found[f"cross-entropy, {base}: speed / that of its GEMMs"] == (">= 0.9", "0.9", "met")
    speed = found[f"cross-entropy, {base}: TFLOP/s (GEMMs alone 791)"]
    assert speed == (">= 700", "720", "met")
    assert found[f"log-sum-exp, {base}: speed / that of its GEMM"] == (">= 0.65", "0.9", "met")
    price = [value for key, value in found.items() if "time / cross-entropy alone" in key]
    assert ("<= 1.01", "1.02", "missed") in price


def test_nothing_measured_is_no_figure() -> None:
    for device in ("cpu", "cuda"):
        found = verdicts(device, [])
        assert found and {verdict for _, _, verdict in found.values()} == {
            "not measured: not run yet"
        }


def test_a_reason_reaches_the_figure(measured: list[Result]) -> None:
    case = next(plan.case for plan in plans("cpu") if plan.only == (OURS, RELEASED))
    results = [
        replace(each, p50_ms=None, extra_mib=None, reason="would need 99.0 GiB, more than 14.0")
        if each.case == case and each.implementation == RELEASED
        else each
        for each in measured
    ]
    verdict = verdicts("cpu", results)[f"loss with KL, {title(case)}: time of released / ours"]
    assert verdict == (">= 4", "", "not measured: would need 99.0 GiB, more than 14.0")


def test_the_report_says_what_was_measured_and_what_was_not(
    measured: list[Result], tmp_path: Path
) -> None:
    absent = replace(
        measured[0],
        implementation="quack",
        p50_ms=None,
        reason="its kernels need a GPU",
    )
    nowhere = [
        replace(each, device="cuda", machine=NO_GPU, p50_ms=None, reason="needs a GPU")
        for each in results_of(plans("gpu")[0])
    ]
    other = replace(measured[2], remark="twice the loss")
    report, *pictures = render([*measured[:2], other, *measured[3:], absent, *nowhere], tmp_path)
    text = report.read_text(encoding="utf-8")
    assert "## On two cores" in text and "## On a GPU (none here)" in text
    assert "2031-02-03 04:05; torch 9.9.9; threads: 2; commit abc1234" in text
    assert "`python -m benchmarks run`" in text
    cells = list(figure_lines(text))
    assert all(line[2] or line[3].startswith("not measured: ") for line in cells)
    not_measured = [line for line in cells if line[3].startswith("not measured")]
    assert {line[3] for line in not_measured} == {
        "not measured: needs a GPU",  # the one case that is in the file
        "not measured: not run yet",
    }
    assert "| linear_cross_entropy | its kernels need a GPU | quack (1) |" in text
    assert "| linear_cross_entropy | theirs | twice the loss | 1 |" in text
    assert "In bf16 this processor multiplies by AVX-512 BF16 instructions" in text
    case = title(measured[0].case)
    assert f"| {case} | {GEMMS} | 9 | 10 - 10 | 0.222 | 791 | 1 |  | 0.5 |  |" in text
    assert "| N, 1024 to 8192 | pact-kernels | 0.00 |" in text
    assert [path.name for path in pictures] == [
        "linear_cross_entropy-cpu-two-cores.png",
        "pact_loss-cpu-two-cores.png",
        "growth-cpu-two-cores.png",
    ]
    for path in pictures:
        assert f"![]({path.name})" in text and path.read_bytes().startswith(b"\x89PNG")


def test_an_empty_file_is_reported_as_nothing_measured(tmp_path: Path) -> None:
    (report,) = render([], tmp_path)
    text = report.read_text(encoding="utf-8")
    assert "Nothing was measured: needs a GPU." in text and "![]" not in text


def test_lines_are_taken_from_results_of_one_machine(measured: list[Result]) -> None:
    """A line of which a point is missing has no figure."""
    case = lines("cpu")[0].cases[1]
    found = verdicts("cpu", [each for each in measured if each.case != case])
    (growth,) = (value for key, value in found.items() if "growth of memory" in key)
    assert growth[2].startswith("not measured")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.06649, "0.0665"), (1.0, "1"), (12.345, "12.3"), (1234.5, "1234")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text
