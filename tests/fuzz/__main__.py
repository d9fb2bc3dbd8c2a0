"""`python -m tests.fuzz --seconds 60 [target ...]`: damaged files, as many as fit into the time.

Each target runs in a process of its own, begins with valid files, and keeps what reaches new code.
Needs `atheris`. It ends with 1 if anything but a ValueError came out of a reader, or one hung or
took too much memory; the input is then kept, and `python -m tests.fuzz --input FILE target` reads
it again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

HANG_S = 20
MEMORY_MIB = 4096
LONGEST = 2**16
"""Bytes of an input."""

_EDGES = re.compile(r"cov: (\d+)")
_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


class Outcome(NamedTuple):
    """What came of a target."""

    runs: int
    new_edges: int
    fault: str
    """The last line of what went wrong; empty if nothing did."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default: 20)")
    parser.add_argument("--input", type=Path, help="read this file alone, by one target")
    given = parser.parse_args()
    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {unknown[0]!r}: they are {', '.join(TARGETS)}")
    if given.input is not None:
        if len(given.targets) != 1:
            parser.error("an input is read by one target: name it")
        return _again(given.targets[0], given.input)
    print(f"{'target':14}{'runs':>10}{'new edges':>12}  fault", flush=True)
    faults = 0
    for name in given.targets or TARGETS:
        outcome = _run(name, given.seconds)
        faults += bool(outcome.fault)
        said = outcome.fault or "none"
        print(f"{name:14}{outcome.runs:>10}{outcome.new_edges:>12}  {said}", flush=True)
    return 1 if faults else 0


def _again(name: str, path: Path) -> int:
    """Read one input, and show what comes out."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            TARGETS[name].read(path.read_bytes(), Path(folder))
        except ValueError as error:
            print(f"refused: {error}")
        else:
            print("read")
    return 0


def _run(name: str, seconds: int) -> Outcome:
    """Fuzz one target in another process."""
    work = Path(tempfile.mkdtemp(prefix=f"pact-fuzz-{name}-"))
    for folder in ("seeds", "corpus", "made", "files"):
        (work / folder).mkdir()
    for number, seed in enumerate(TARGETS[name].seeds(work / "made")):
        (work / "seeds" / str(number)).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={work}/fault-",
        "-print_final_stats=1",
    ]
    folders = [str(work / folder) for folder in ("corpus", "seeds")]
    argv = [sys.executable, "-m", "tests.fuzz.worker", name, str(work / "files")]
    done = subprocess.run([*argv, *options, *folders], capture_output=True, check=False)
    text = (done.stdout + done.stderr).decode(errors="replace")
    edges = [int(match) for match in _EDGES.findall(text)]
    runs = _RUNS.findall(text)
    fault = _fault(done.returncode, text, work)
    if not fault:
        shutil.rmtree(work)
    return Outcome(int(runs[-1]) if runs else 0, edges[-1] - edges[0] if edges else 0, fault)


def _fault(code: int, text: str, work: Path) -> str:
    if code == 0:
        return ""
    (work / "log").write_text(text)
    kept = next((str(path) for path in work.glob("fault-*")), str(work / "log"))
    errors = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception|Interrupt)\b.*$", text, re.MULTILINE)
    found = re.findall(r"^.*ERROR: libFuzzer: (.*)$", text, re.MULTILINE)
    what = next(iter(errors[-1:] or found), f"exit code {code}")
    return f"{what:.100} ({kept})"


if __name__ == "__main__":
    sys.exit(main())
