"""Does the built wheel work where nothing else of this folder is? `make test-wheel`.

For every supported Python that is on this machine, an empty environment with the wheel and the
oldest dependencies that it allows, and one with the newest; in each, the op and whole commands.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

SUPPORTED = ("3.11", "3.12", "3.13")
HERE = Path(__file__).parent
EXTRA = "method"


def lowest(wheel: Path) -> list[str]:
    """What the wheel and its extra require, each pinned to the release of its lower bound."""
    with ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    found = []
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        if not marker.strip() or f'extra == "{EXTRA}"' in marker:
            found.append(re.sub(r">=\s*([\w.]+)", r"==\1.*", requirement.strip()))
    return found


def interpreters(wanted: list[str]) -> Iterator[tuple[str, Path]]:
    """Version and path of each that is there; those of pyenv count."""
    for version in wanted:
        found = [shutil.which(f"python{version}")]
        found += map(
            str, sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
        )
        usual = next((path for path in reversed(found) if path and _is(version, path)), None)
        if usual is None:
            print(f"Python {version}: not on this machine", flush=True)
        else:
            yield version, Path(usual)


def _is(version: str, python: str) -> bool:
    """Whether it starts, as that version: a shim of pyenv may not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


def check(wheel: Path, python: Path, dependencies: str, constraints: Path | None) -> str:
    """Install and use the wheel in an environment of its own; returns what failed, or nothing."""
    with tempfile.TemporaryDirectory(prefix="pact-wheel-") as place:
        folder = Path(place)
        own = folder / "environment" / "bin" / "python"
        subprocess.run([python, "-m", "venv", folder / "environment"], check=True)
        install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["-c", constraints] if constraints else []
        pins = lowest(wheel) if dependencies == "oldest" else []
        for name in ("smoke.py", "tiny.py"):
            source = HERE / ("wheel_smoke.py" if name == "smoke.py" else name)
            shutil.copy(source, folder / name)
        torch = [pin for pin in pins if pin.startswith("torch")]
        steps = [
            [*install, *torch, wheel],  # the op needs torch alone
            [own, "smoke.py", "op"],
            [*install, *pins, f"{wheel}[{EXTRA}]"],
            [own, "smoke.py", "commands"],
        ]
        for step in steps:
            done = subprocess.run(
                [str(part) for part in step], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                said = f"{done.stdout}\n{done.stderr}"[-3000:]
                return f"{' '.join(str(part) for part in step[1:])}\n{said}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/wheel.py", description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", nargs="+", default=list(SUPPORTED), metavar="VERSION")
    parser.add_argument("--dependencies", nargs="+", default=["oldest", "newest"])
    parser.add_argument("--constraints", type=Path, help="for pip, with the newest dependencies")
    given = parser.parse_args()
    failed = checked = 0
    for version, python in interpreters(given.python):
        for dependencies in given.dependencies:
            constraints = given.constraints if dependencies == "newest" else None
            resolved = constraints.resolve() if constraints else None
            fault = check(given.wheel.resolve(), python, dependencies, resolved)
            failed += bool(fault)
            checked += 1
            said = f"FAILED: {fault}" if fault else "passed"
            print(f"Python {version}, {dependencies} dependencies: {said}", flush=True)
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
