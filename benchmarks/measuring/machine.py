"""What a measurement depends on beside the code: processor or card, versions, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.peer import installed_version

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
MEMORY_FRACTION = 0.6
"""The part of the machine's or the card's memory that an implementation may need at most."""
NO_GPU = "none here"
"""The machine of a measurement that needs a GPU where there is none."""
NEEDS_A_GPU = "needs a GPU"


def circumstances(device: torch.device) -> dict[str, Any]:
    """Where and when a run is made that starts now; what is not there is empty.

    A commit has a + where files beside the results have changed since. `bf16` is how a processor
    multiplies it: by which instructions, or through fp32.
    """
    on_gpu = device.type == "cuda"
    commit = _git("rev-parse", "--short", "HEAD")
    changed = commit and _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "machine": machine_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": installed_version("triton") or "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "commit": f"{commit}+" if changed else commit,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}",
        "bf16": "" if on_gpu else _bf16_products(),
    }


def machine_name(device: torch.device) -> str:
    """For tables: measurements of one machine are comparable, those of two are not."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else NO_GPU
    cores = os.cpu_count() or 1
    processor = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{processor}, {cores} core{'s' if cores > 1 else ''}"


def memory_limit_bytes(device: torch.device) -> int:
    """What an implementation may need, of the card's memory if there is one, or the machine's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        there = torch.cuda.is_available()
        total = torch.cuda.get_device_properties(device).total_memory if there else 0
    return int(MEMORY_FRACTION * total)


def _bf16_products() -> str:
    flags = _cpuinfo("flags").split()
    ways = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    return next((way for flag, way in ways.items() if flag in flags), "through fp32")


def _cpuinfo(key: str) -> str:
    """An entry of the first core; empty where the system does not say."""
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.+)$", listed, re.MULTILINE)
    return found[1].strip() if found else ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
