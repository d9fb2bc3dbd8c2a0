"""A small training problem in memory: conversations of unequal length, and what `fit` takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.packing import PackedCollator
from pact.data.template import header_ids
from pact.objective import PactConfig, PactObjective
from pact.reference import FrozenModel, Reference
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.metrics import Record
from tests.tiny import tiny_llama, tiny_tokenizer

TOKEN_IDS = torch.tensor([5, 17, 40, 41, 99, 150, 260, 300])
TOKEN_WEIGHTS = torch.tensor([0.6, -0.1, 0.3, 0.2, 0.5, 0.1, -0.2, 0.4])


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Answers of 1 to 7 repeats, for micro-batches to differ in rows; some have two turns."""
    turns = []
    for n in range(count):
        turn = [
            {"role": "user", "content": f"question {n}" + " please" * (n % 4)},
            {"role": "assistant", "content": "I cannot. " + f"Number {n} is it. " * (1 + n % 7)},
        ]
        turns.append(turn * 2 if n % 3 == 0 else turn)
    return turns


class Problem(NamedTuple):
    """What `fit` takes beside the model and its settings."""

    tokenizer: Any
    dataset: Any
    objective: PactObjective
    collator: Collator

    def reference(self, model: nn.Module) -> Reference | None:
        """A frozen copy of another model, so that the KL pulls from the first step on."""
        return FrozenModel(copy.deepcopy(model)) if self.objective.needs_reference else None

    def packed(self, pack_length: int | None = None) -> Problem:
        """The same examples in packed lines."""
        collator = PackedCollator(**vars(self.collator), pack_length=pack_length)
        return self._replace(collator=collator)

    def fit(self, model: nn.Module, config: FitConfig, **options: Any) -> list[Record]:
        reference = self.reference(tiny_llama(seed=1))
        return fit(model, self.dataset, self.objective, reference, self.collator, config, **options)


def problem(pact: PactConfig | None, count: int = 20) -> Problem:
    """`count` examples under the objective of `pact`; None is cross-entropy alone."""
    tokenizer = tiny_tokenizer()
    dataset = encode_examples(conversations(count), tokenizer, max_length=200)
    objective = PactObjective.plain()
    if pact is not None:
        objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, pact)
    header = header_ids(tokenizer)
    collator = Collator(header, tokenizer.pad_token_id, post_only=objective.needs_post_only)
    return Problem(tokenizer, dataset, objective, collator)


class Stopping:
    """A data set that fails after a number of reads, as if the machine went away."""

    def __init__(self, dataset: Any, reads: int) -> None:
        self.dataset = dataset
        self.reads = reads

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.reads -= 1
        if self.reads < 0:
            raise ConnectionError("the machine is gone")
        return self.dataset[index]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that is trained."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def summed_gradients(model: nn.Module) -> Mapping[str, Tensor]:
    """A dict that fills with the sum of all gradients that reach the parameters from now on."""
    sums: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:  # a hook's result would replace the gradient
        sums[name] += gradient

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            sums[name] = torch.zeros_like(parameter)
            parameter.register_hook(partial(add, name))
    return sums


def one_step(
    given: Problem, model: nn.Module, reference: Reference | None, **settings: Any
) -> tuple[Record, dict[str, Tensor]]:
    """The record and the gradients of one optimiser step, as the optimiser sees them.

    They are summed over micro-batches and processes, and not clipped.
    """
    gradients: dict[str, Tensor] = {}

    def read(*_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                gradients[name] = parameter.grad.clone()

    hook = register_optimizer_step_pre_hook(read)
    try:
        config = FitConfig(max_steps=1, max_grad_norm=1e9, **settings)
        (record,) = fit(model, given.dataset, given.objective, reference, given.collator, config)
    finally:
        hook.remove()
    return record, gradients


def largest_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest distance of two tensors of a name, relative to the largest entry of the second."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-12))
        for name in theirs
    )
