"""The model to train: adapters or all weights, and its states on the answer rows.

Legend: B sequences, L positions, N answer rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pact.models import hidden_states, output_head
from pact.objective import PactObjective
from pact.reference import Reference
from pact.training.config import TrainConfig
from pact_kernels import PactLoss


class Student(nn.Module):
    """A causal language model whose forward ends at the answer rows, for DDP to wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return row_states(self.model, batch)


def row_states(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The hidden states that predict the answer tokens of a collated batch, (N, D)."""
    states = hidden_states(model, batch["input_ids"], batch["attention_mask"])  # (B, L, D)
    return states[batch["row_sequence"], batch["row_position"]]  # (N, D)


def make_trainable(model: Any, config: TrainConfig) -> Any:
    """Put LoRA adapters on `model`, or set all its weights free; the model is changed in place.

    Their first values depend on `config.seed` alone. Adapters are float32 also on a bfloat16 model.

    Raises:
        ValueError: the model has no layer of the names in `lora_targets`.
    """
    if config.full_finetuning:
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return get_peft_model(model, lora)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimiser changes, by name.

    Raises:
        ValueError: nothing is trainable, or something is kept in less than float32, where small
            updates are lost to rounding.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            "at least one parameter must be trainable, got none: add adapters, or call "
            "model.requires_grad_(True)"
        )
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"trainable parameters must be float32, got {parameter.dtype} for {name}: load the "
                "model in float32, and set dtype='bf16' for bfloat16 products"
            )
    return parameters


def batch_loss(
    student: Callable[[Mapping[str, Tensor]], Tensor],
    model: nn.Module,
    objective: PactObjective,
    reference: Reference | None,
    batch: Mapping[str, Tensor],
    num_items: int | Tensor | None,
) -> PactLoss:
    """The objective of one collated batch on the model's device: reference, student, head.

    Args:
        student: the batch -> (N, D) states, by way of whatever wraps the model.
        model: the model itself, for its head.
        objective: what to minimise.
        reference: the frozen model; None where the objective needs none.
        batch: as `pact.data.collate.Collator` makes it.
        num_items: rows of the whole optimiser step; None is the batch's own.
    """
    held_to = None if reference is None else reference(batch)
    hidden = student(batch)  # (N, D)
    head = output_head(model)
    target, step = batch["row_target"], batch["row_step"]
    return objective(hidden, head, target, step, held_to, num_items=num_items)
