"""What depends on the settings and the step alone: a resumed run needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from transformers import get_scheduler

from pact.data.batches import bucketed_order
from pact.training.config import FitConfig


@cache
def _factor(name: str, num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """Step -> factor on the peak rate: what transformers' scheduler of this name multiplies by."""
    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, nothing, num_warmup_steps, num_steps)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


class Plan(NamedTuple):
    """The steps of a run over `num_examples` examples."""

    config: FitConfig
    num_examples: int
    lengths: Sequence[int] | None = None
    """Tokens of each example, for `config.group_by_length`."""

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
        seed, size = (self.config.seed, epoch), self.config.batch_size
        if self.config.group_by_length:
            assert self.lengths is not None
            order = bucketed_order(self.lengths, size, seed)
        else:
            order = np.random.default_rng(seed).permutation(self.num_examples).tolist()
        return order[place * size : (place + 1) * size]

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
