"""The model to train, its adapters or all its weights, and the loss of a batch.

Legend: B sequences, L positions, N answer rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pact.data.packing import PackedCollator
from pact.models import check_packing, hidden_states, output_head
from pact.objective import PactObjective
from pact.reference import FrozenModel, Reference
from pact.training.config import TrainConfig
from pact_kernels import PactLoss


class Student(nn.Module):
    """A causal language model whose forward is the loss of a batch, as data parallelism needs it.

    What wraps it for several processes has to see every trained parameter used in its forward, the
    head's too; so the objective is inside.
    """

    def __init__(
        self, model: nn.Module, objective: PactObjective, reference: Reference | None
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.reference = reference

    def forward(
        self, batch: Mapping[str, Tensor], num_items: int | Tensor | None = None
    ) -> PactLoss:
        return batch_loss(self.model, self.objective, self.reference, batch, num_items)


def batch_loss(
    model: nn.Module,
    objective: PactObjective,
    reference: Reference | None,
    batch: Mapping[str, Tensor],
    num_items: int | Tensor | None = None,
) -> PactLoss:
    """The objective of one collated batch: reference, backbone, answer rows, head.

    Args:
        model: a causal language model, with or without PEFT adapters.
        objective: what to minimise.
        reference: the frozen model; None where the objective needs none.
        batch: as `pact.data.collate.Collator` or `pact.data.packing.PackedCollator` makes it, on
            the model's device.
        num_items: rows of the whole optimiser step; None is the batch's own.
    """
    held_to = None if reference is None else reference(batch)
    places = batch.get("position_ids")  # of packed sequences
    states = hidden_states(model, batch["input_ids"], batch["attention_mask"], places)  # (B, L, D)
    hidden = states[batch["row_sequence"], batch["row_position"]]  # (N, D)
    return objective(
        hidden,
        output_head(model),
        batch["row_target"],
        batch["row_step"],
        held_to,
        num_items=num_items,
    )


def check_collator(collator: object, model: nn.Module, reference: Reference | None) -> None:
    """Refuse packed batches for a student or a reference that looks across sequences."""
    if isinstance(collator, PackedCollator):
        check_packing(model)
        if isinstance(reference, FrozenModel):
            check_packing(reference.model)


def make_trainable(model: Any, config: TrainConfig) -> Any:
    """Put adapters on `model`, or set all its weights free; the model is changed in place."""
    if config.full_finetuning:
        return model.requires_grad_(True)
    return add_adapters(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )


def add_adapters(
    model: Any,
    *,
    r: int = TrainConfig.lora_r,
    alpha: int = TrainConfig.lora_alpha,
    dropout: float = TrainConfig.lora_dropout,
    targets: Sequence[str] = TrainConfig.lora_targets,
    seed: int = TrainConfig.seed,
) -> Any:
    """Put LoRA adapters on `model`, in place; they alone are trainable.

    Adapters are float32 also on a bfloat16 model, and begin as the identity.

    Args:
        model: a causal language model.
        r: their rank.
        alpha: their scale, times 1 / r.
        dropout: at their input.
        targets: names of the linear layers that get one.
        seed: their first values depend on it alone.

    Raises:
        ValueError: the model has no layer of these names.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
