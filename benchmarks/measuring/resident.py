"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

KIB, MIB = 2**10, 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What CLEAR takes to lower the high-water mark to the memory now resident."""


def peak_mib() -> float:
    """High-water mark.

    Of the memory map, unlike getrusage's ru_maxrss, which a child takes over from its parent.
    """
    return _status_mib("VmHWM")


def resident_mib() -> float:
    """Now."""
    return _status_mib("VmRSS")


def reset_peak() -> bool:
    """Lower the high-water mark to what is resident now; False where that is not permitted."""
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status_mib(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * KIB / MIB
