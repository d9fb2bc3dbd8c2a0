"""The frozen aligned model: the student with its adapters off, a copy, or what was cached of it.

live        runs the backbone for every batch
fill        runs it once over the data set, into `shards` on disk; `fingerprint` is their key
cache       reads them, in place of a live reference
centred     the values that a cache keeps, up to the shift that the objective does not see
columns     a data set as flat arrays
check       whether the student is its reference before the first step
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact.common.lazy import lazy_names
from pact.reference.live import AdaptersOff, FrozenModel, Reference, adapters_off, reference_rows

if TYPE_CHECKING:
    from pact.reference.cache import CachedReference, ReferenceCache
    from pact.reference.check import check_at_start, check_same_model, is_fresh
    from pact.reference.fill import fill_cache
    from pact.reference.fingerprint import cache_key

__all__ = [
    "AdaptersOff",
    "CachedReference",
    "FrozenModel",
    "Reference",
    "ReferenceCache",
    "adapters_off",
    "cache_key",
    "check_at_start",
    "check_same_model",
    "fill_cache",
    "is_fresh",
    "reference_rows",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CachedReference": "pact.reference.cache",
        "ReferenceCache": "pact.reference.cache",
        "cache_key": "pact.reference.fingerprint",
        "check_at_start": "pact.reference.check",
        "check_same_model": "pact.reference.check",
        "fill_cache": "pact.reference.fill",
        "is_fresh": "pact.reference.check",
    },
)
