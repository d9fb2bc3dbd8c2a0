"""Measure plan after plan, writing each case's lines as it is done, until the time is up."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.cases.plan import Plan, title
from benchmarks.harness import Bench, measure
from benchmarks.reporting.results import Result, add_results

logger = logging.getLogger(__name__)


def run(
    planned: Sequence[Plan],
    bench: Bench,
    path: Path,
    *,
    minutes: float | None = None,
    estimate_s: Callable[[Plan], float] = lambda plan: 0.0,
    now_s: Callable[[], float] = time.monotonic,
) -> list[Plan]:
    """Measure what fits into the time, and return what was left out.

    Args:
        planned: in the order of their importance.
        bench: how they are measured.
        path: of the results file, to which each case's lines are added when it is done.
        minutes: that all may take; a case that is not expected to fit is left out.
        estimate_s: how long a case will take.
        now_s: a clock.
    """
    start_s, left_out = now_s(), []
    for number, plan in enumerate(planned):
        name = f"{number + 1}/{len(planned)} {plan.case.op}, {title(plan.case)}"
        spent_s = now_s() - start_s
        if minutes is not None and spent_s + estimate_s(plan) > 60 * minutes:
            left_out.append(plan)
            continue
        logger.info("%s", name)
        before_s = now_s()
        results = measure(plan, bench)
        add_results(results, path)
        _tell(results, now_s() - before_s)
        gc.collect()
        if bench.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
    for plan in left_out:
        logger.warning("left out, no time: %s, %s", plan.case.op, title(plan.case))
    return left_out


def _tell(results: Sequence[Result], took_s: float) -> None:
    for each in results:
        if each.p50_ms is None:
            logger.info("  %-28s %s", each.implementation, each.reason)
        else:
            memory = "" if each.extra_mib is None else f"{each.extra_mib:9.1f} MiB"
            share = "" if each.of_gemms is None else f"{each.of_gemms:7.3f} of GEMMs"
            logger.info(
                "  %-28s %9.2f ms %s %s %s",
                each.implementation,
                each.p50_ms,
                share,
                memory,
                each.setting if each.settings_tried > 1 else "",
            )
    logger.info("  %.1f s", took_s)
