"""Kill runs and go on with them for an hour, beside one that is let be: `make soak`.

Prints and writes what docs/reliability.md says of it; ends with 1 if a run was lost, ended with
other bits than one left alone, or left a file behind, and if memory grew or a signal never came.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.soak.chain import Alone, chain, left_alone
from tests.soak.report import failures, write_report
from tests.soak.victim import NEVER, Moment, Settings, Victim, prepare

RESULTS = Path("benchmarks/results/soak.json")
STEADY = Settings(steps=10**7, save_every=500, log_every=100)
"""The run that is let be: a checkpoint every few seconds, until it is told to end."""
SAMPLE_S = 5.0
IN_TWO = 0.2
"""Share of the chains in two processes."""
KINDS = (
    (0.4, "SIGKILL by the clock"),
    (0.8, "SIGKILL before a change of a file"),
    (0.9, "SIGINT"),
    (1.0, "SIGTERM"),
)
"""Share up to which a draw is of that kind."""


class Steady:
    """A long run in a process of its own, and the memory that it holds."""

    def __init__(self, folder: Path) -> None:
        prepare(folder, STEADY)
        self.victim = Victim(folder, folder / "out" / "run", NEVER._replace(number=signal.SIGTERM))
        self.samples: list[float] = []  # MiB
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.samples.append(self.victim.memory() / 2**20)

    def end(self) -> dict[str, Any]:
        """Tell it to end; returns what it came to."""
        self._done.set()
        self._thread.join()
        self.victim.end = Moment(after_s=0.0, number=signal.SIGTERM)
        code = self.victim.ended()
        log = self.victim.log.read_text()
        assert code == 128 + signal.SIGTERM, f"exit code {code}: {log[-2000:]}"
        metrics = (self.victim.log.with_name("run") / "metrics.jsonl").read_text()
        steps = json.loads(metrics.splitlines()[-1])["step"]
        return {
            "steps": int(steps),
            "checkpoints": int(steps) // STEADY.save_every,
            "memory_mib": [round(value, 1) for value in self._by_tenths()],
        }

    def _by_tenths(self) -> list[float]:
        """The median over each tenth of the time."""
        size = max(1, len(self.samples) // 10)
        parts = [self.samples[n : n + size] for n in range(0, len(self.samples), size)]
        return [statistics.median(part) for part in parts if len(part) == size]


def moments(draw: random.Random, alone: Alone) -> Iterator[Moment]:
    """Without an end."""
    while True:
        share = draw.random()
        kind = next(name for limit, name in KINDS if share < limit)
        rank = draw.randrange(alone.processes)
        if kind.endswith("file"):
            yield Moment(change=draw.randint(1, alone.changes), rank=rank)
        else:
            number = signal.Signals[kind.split()[0]]
            after_s = draw.uniform(0, alone.duration_s)
            yield Moment(after_s=after_s, number=number, rank=rank)


def soak(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run it; returns what the report is made of."""
    begin = time.monotonic()
    draw = random.Random(seed)
    alone = {n: left_alone(folder / f"alone-{n}", Settings(), n) for n in (1, 2)}
    steady = Steady(folder / "steady")
    codes: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    faults: list[str] = []
    number = 0
    while time.monotonic() - begin < 60 * minutes:
        number += 1
        processes = 2 if draw.random() < IN_TWO else 1
        try:
            run = chain(
                alone[processes],
                folder / f"chain-{number}",
                moments(draw, alone[processes]),
            )
        except AssertionError as error:
            faults.append(str(error))
            continue
        codes.update(run.codes)
        ended[processes] += 1
        if run.differs:
            faults.append(f"not as if left alone: {run.differs}: {run.log[-2000:]}")
    return {
        "minutes": round((time.monotonic() - begin) / 60),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "runs": sum(ended.values()),
        "runs_in_two_processes": ended[2],
        "killed": codes[-signal.SIGKILL],
        "interrupted": codes[128 + signal.SIGINT],
        "terminated": codes[128 + signal.SIGTERM] + codes[-signal.SIGTERM],
        "faults": faults,
        "steady": steady.end(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pact-soak-") as folder:
        found = soak(given.minutes, given.seed, Path(folder))
    kept = found | {"faults": [fault.splitlines()[0] for fault in found["faults"]]}  # no paths
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(write_report(found), end="")
    failed = failures(found)
    for line in failed:
        print(f"soak: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
