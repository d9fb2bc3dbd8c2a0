"""What depends on the settings and the step alone: a resumed run needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from transformers import get_scheduler

from pact.data.anchors import anchors_of
from pact.data.batches import bucketed_order
from pact.training.config import FitConfig

LINES = 2**16
"""Examples whose lengths are read at a time."""


@cache
def _factor(name: str, num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """Step -> factor on the peak rate: what transformers' scheduler of this name multiplies by."""
    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, nothing, num_warmup_steps, num_steps)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


@dataclass(frozen=True)
class Plan:
    """The steps of a run over `num_examples` examples; `Plan.over` reads them."""

    config: FitConfig
    num_examples: int
    lengths: Sequence[int] | np.ndarray | None = None
    """Tokens of each example, for `config.group_by_length`."""
    anchors: np.ndarray | None = None
    """(num_examples,) bool: which are anchors, of which every step then has as many as another."""
    _order: dict[int, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The order of the epoch that was asked for last, 8 bytes an example."""

    @classmethod
    def over(cls, dataset: Any, config: FitConfig) -> Plan:
        """The plan for a data set of encoded examples."""
        if not config.group_by_length:
            return cls(config, len(dataset))
        anchors = anchors_of(dataset)
        strata = anchors if anchors.any() else None
        return cls(config, len(dataset), example_lengths(dataset), strata)

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may be smaller than the others."""
        return math.ceil(self.num_examples / self.config.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return self.config.max_steps or self.config.epochs * self.steps_per_epoch

    @property
    def num_warmup_steps(self) -> int:
        return math.ceil(self.config.warmup_ratio * self.num_steps)

    def indices(self, step: int) -> list[int]:
        """The examples of a step, drawn anew without replacement in every epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._order:
            self._order.clear()
            self._order[epoch] = self._drawn(epoch)
        size = self.config.batch_size
        examples: list[int] = self._order[epoch][place * size : (place + 1) * size].tolist()
        return examples

    def _drawn(self, epoch: int) -> np.ndarray:
        """(num_examples,) int64: the order of an epoch."""
        seed = (self.config.seed, epoch)
        if not self.config.group_by_length:
            return np.random.default_rng(seed).permutation(self.num_examples)
        assert self.lengths is not None
        size, strata = self.config.batch_size, self.anchors
        return np.asarray(bucketed_order(self.lengths, size, seed, strata=strata))

    def micro_batches(self, step: int, process: int, num_processes: int) -> list[list[int]]:
        """A process's share of a step, cut to micro_batch_size; a small step may leave it empty."""
        share = self.indices(step)[process::num_processes]
        size = self.config.micro_batch_size or self.config.batch_size
        return [share[start : start + size] for start in range(0, len(share), size)]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from 0 (but for "constant"), then transformers' schedule of the name."""
        factor = _factor(self.config.schedule, self.num_warmup_steps, self.num_steps)
        return self.config.learning_rate * float(factor(step))

    def noise_seed(self, step: int, process: int) -> int:
        """Seed of a step's dropout in one process."""
        entropy = np.random.SeedSequence((self.config.seed, step, process))
        return int(entropy.generate_state(1, np.uint64)[0])


def example_lengths(dataset: Any) -> np.ndarray:
    """(E,) int64: tokens of each example; of a `datasets.Dataset` as Arrow keeps them."""
    if not hasattr(dataset, "with_format"):
        return np.array([len(dataset[index]["input_ids"]) for index in range(len(dataset))])
    pieces = dataset.select_columns("input_ids").with_format("arrow").iter(LINES)
    sizes = [pc.list_value_length(piece["input_ids"]).to_numpy() for piece in pieces]
    return np.concatenate(sizes).astype(np.int64)
