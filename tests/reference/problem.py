"""A data set, an objective and models for the cache's tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor

import pact_kernels as pk
from pact.data.collate import Collator
from pact.data.spans import IGNORE
from pact.data.template import encode, header_ids
from pact.objective import PactObjective
from pact.reference import FrozenModel, ReferenceCache, fill_cache
from tests.objectives import matching
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

THREE_TURNS = 1
WITHOUT_ROWS = 2
COUNT = 11  # with shards of 4: two full ones and one of 3


class Problem(NamedTuple):
    """What `fill_cache` takes beside the reference."""

    dataset: Any
    objective: PactObjective
    collator: Collator

    def fill(self, reference: FrozenModel, folder: Any, **options: Any) -> ReferenceCache:
        return fill_cache(
            self.dataset,
            reference,
            self.objective,
            self.collator,
            folder=folder,
            progress=False,
            **options,
        )

    def batch(self, *indices: int) -> dict[str, Tensor]:
        return self.collator([{**self.dataset[index], "example": index} for index in indices])


def problem(over: str = "selection", gate: bool = True, **settings: Any) -> Problem:
    """Conversations of unequal length; one has three assistant turns, one nothing to predict."""
    tokenizer = tiny_tokenizer()
    turns = conversations(COUNT)
    turns[THREE_TURNS] = turns[THREE_TURNS] * 3
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for conversation in turns:
        encoded = encode(conversation, tokenizer)
        columns["input_ids"].append(encoded.input_ids)
        columns["labels"].append(encoded.labels)
    columns["labels"][WITHOUT_ROWS] = [IGNORE] * len(columns["labels"][WITHOUT_ROWS])
    pact = matching(over, gate=gate, **settings)
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, pact)
    collator = Collator(header_ids(tokenizer), tokenizer.pad_token_id, post_only=gate)
    return Problem(Dataset.from_dict(columns), objective, collator)


class Counting(FrozenModel):
    """A frozen model that counts its batches and rows, and fails after some, as if killed."""

    def __init__(self, seed: int = 1, fail_after: int | None = None) -> None:
        super().__init__(tiny_llama(seed=seed))
        self.fail_after = fail_after
        self.calls = 0
        self.rows = 0

    def __call__(self, batch: Mapping[str, Tensor]) -> pk.ReferenceStates:
        if self.calls == self.fail_after:
            raise ConnectionError("the machine is gone")
        self.calls += 1
        self.rows += batch["row_step"].numel()
        return super().__call__(batch)


def adapted(model: Any, scale: float = 0.0) -> Any:
    """The model with LoRA adapters, which do something if `scale` is not 0."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_().mul_(scale)
    return model
