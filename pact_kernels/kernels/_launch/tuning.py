"""Autotuning, for who asks for it (`pk.autotune`): the fastest of a few configurations is kept.

Nothing depends on it: outside such a block a launcher takes its default from `configs`. A choice is
remembered for the process, by kernel, card, dtype and sizes. Another configuration sums in another
order, so the last bits of a result may differ from the default's.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import triton
from torch import Tensor

from pact_kernels.dispatch import is_autotuning

Config = TypeVar("Config", bound=Any)
Timer = Callable[[Callable[[], None]], float]

_chosen: dict[Hashable, Any] = {}
_log = logging.getLogger(__name__)


def tuned(
    key: tuple[Hashable, ...],
    default: Config,
    variations: dict[str, tuple[int, ...]],
    run: Callable[[Config], None],
    tensor: Tensor,
    timer: Timer | None = None,
) -> Config:
    """The remembered choice for `key`, the fastest one inside `pk.autotune()`, or the default.

    Args:
        key: what the choice depends on, besides the card and the dtype of `tensor`.
        default: what is launched where nothing was tuned.
        variations: values of the configuration's fields to try beside the default's.
        run: launches with a configuration; it may be called many times.
        tensor: one of the operands; on anything but a GPU nothing is timed.
        timer: milliseconds of a call; unset is the median of Triton's benchmark.
    """
    key = (*key, tensor.device, tensor.dtype)
    if key in _chosen:
        return _chosen[key]
    if not is_autotuning() or (timer is None and not tensor.is_cuda):
        return default
    times_ms = {
        c: _time_ms(run, c, timer or _benchmark_ms) for c in _candidates(default, variations)
    }
    best = min(times_ms, key=lambda config: times_ms[config])
    _log.info("%s: %s, %.3f ms (default %.3f ms)", key, best, times_ms[best], times_ms[default])
    _chosen[key] = best
    return best


def forget() -> None:
    """Drop every choice."""
    _chosen.clear()


def _candidates(default: Config, variations: dict[str, tuple[int, ...]]) -> Iterator[Config]:
    """The default, then every other combination of the variations."""
    yield default
    for values in itertools.product(*variations.values()):
        config = replace(default, **dict(zip(variations, values, strict=True)))
        if config != default:
            yield config


def _time_ms(run: Callable[[Config], None], config: Config, timer: Timer) -> float:
    """Milliseconds of a launch; infinite where the card cannot hold it."""
    try:
        return timer(lambda: run(config))
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
        return float("inf")


def _benchmark_ms(call: Callable[[], None]) -> float:
    return float(triton.testing.do_bench(call, return_mode="median"))
