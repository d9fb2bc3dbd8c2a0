"""What a measurement depends on beside the code: processor or card, versions, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.peers.peer import installed_version

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "none here"
"""The machine of a measurement that needs a GPU where there is none."""


class Circumstances(NamedTuple):
    """Where and when a run was made."""

    machine: str
    """Processor and the number of its cores, or the card; NO_GPU."""
    threads: int
    """torch's own choice."""
    torch: str
    triton: str
    """Empty where it is not installed."""
    cuda: str
    """That torch was built for; empty on a CPU."""
    commit: str
    """Short, with a + where files beside the results have changed since; empty outside git."""
    date: str
    """UTC, to the minute."""
    bf16: str
    """How a processor multiplies bf16: by which instructions, or through fp32; empty on a GPU."""


def circumstances(device: torch.device) -> Circumstances:
    """The circumstances of a run that starts now."""
    now = datetime.datetime.now(datetime.UTC)
    return Circumstances(
        machine=machine_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        triton=installed_version("triton") or "",
        cuda=(torch.version.cuda or "") if device.type == "cuda" else "",
        commit=_commit(),
        date=now.strftime("%Y-%m-%d %H:%M"),
        bf16=_bf16_products() if device.type == "cpu" else "",
    )


def machine_name(device: torch.device) -> str:
    """For tables: measurements of one machine are comparable, those of two are not."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else NO_GPU
    cores = os.cpu_count() or 1
    return f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the card, if there is one, or of the machine."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return 0
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


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


def _commit() -> str:
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{head}+" if head and changed else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
