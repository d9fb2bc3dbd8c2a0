"""The model to train, its adapters or all its weights, and the loss of a batch.

Legend: B sequences, L positions, N answer rows, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pact.data.collate import learnt_rows
from pact.models import head_and_states, states_and_auxiliary
from pact.objective import Objective
from pact.reference import Reference, reference_rows
from pact.training.checks import check_tied
from pact.training.config import TrainConfig
from pact_kernels import PactLoss

_META = re.compile(r"[\^$*+?()\[\]{}|]")
"""What makes a target an expression; a dot alone is of a path."""


class Student(nn.Module):
    """A causal language model whose forward is the loss of a batch, as data parallelism needs it.

    What wraps it for several processes has to see every trained parameter used in its forward, the
    head's too; so the objective is inside.
    """

    def __init__(self, model: nn.Module, objective: Objective, reference: Reference | None) -> None:
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
    objective: Objective,
    reference: Reference | None,
    batch: Mapping[str, Tensor],
    num_items: int | Tensor | None = None,
) -> PactLoss:
    """The objective of one collated batch: reference, backbone, answer rows, head.

    The loss that balances a model's experts, where its config asks for it, is added with the
    batch's share of the step's rows.

    Args:
        model: a causal language model, with or without PEFT adapters.
        objective: what to minimise.
        reference: the frozen model; None where the objective needs none.
        batch: as `pact.data.collate.Collator` or `pact.data.packing.PackedCollator` makes it, on
            the model's device.
        num_items: rows of the whole optimiser step; None is the batch's own.
    """
    held_to = None if reference is None else reference_rows(reference, objective, batch)
    places = batch.get("position_ids")  # of packed sequences
    states, auxiliary = states_and_auxiliary(
        model, batch["input_ids"], batch["attention_mask"], places
    )  # (B, L, D)
    hidden, head = head_and_states(model, states[batch["row_sequence"], batch["row_position"]])
    anchored = {name: batch[f"row_{name}"] for name in ("learnt", "held") if f"row_{name}" in batch}
    loss = objective(
        hidden,  # (N, D)
        head,
        batch["row_target"],
        batch["row_step"],
        held_to,
        num_items=num_items,
        **anchored,
    )
    if auxiliary is None:
        return loss
    share = 1.0 if num_items is None else learnt_rows(batch) / num_items
    return loss._replace(loss=loss.loss + share * auxiliary.to(loss.loss.device))


def make_trainable(model: Any, config: TrainConfig) -> Any:
    """Put adapters on `model`, or set all its weights free; the model is changed in place."""
    if config.full_finetuning:
        return model.requires_grad_(True)
    return add_adapters(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        use_rslora=config.lora_rslora,
        use_dora=config.lora_dora,
        targets=config.lora_targets,
        seed=config.seed,
    )


def add_adapters(
    model: Any,
    *,
    r: int = TrainConfig.lora_r,
    alpha: int = TrainConfig.lora_alpha,
    dropout: float = TrainConfig.lora_dropout,
    use_rslora: bool = TrainConfig.lora_rslora,
    use_dora: bool = TrainConfig.lora_dora,
    targets: Sequence[str] | str = TrainConfig.lora_targets,
    seed: int = TrainConfig.seed,
) -> Any:
    """Put LoRA adapters on `model`, in place; they alone are trainable.

    Adapters are float32 also on a bfloat16 model, and begin as the identity.

    Args:
        model: a causal language model.
        r: their rank.
        alpha: their scale, times 1 / r.
        dropout: at their input.
        use_rslora: scale them by alpha / sqrt(r).
        use_dora: train magnitudes and directions apart.
        targets: names of the linear layers that get one, or ends of their paths; "all-linear" for
            all but the head; or one regular expression that whole paths match.
        seed: their first values depend on it alone.

    Raises:
        ValueError: the model has no such layer, or one of them is an embedding that the head
            shares.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        target_modules=_found_targets(model, targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora)
    check_tied(adapted)
    return adapted


def _found_targets(model: nn.Module, targets: Sequence[str] | str) -> list[str] | str:
    """Targets as PEFT takes them: a list of names, or one string.

    Raises:
        ValueError: no layer of the model is meant, or names and expressions are mixed.
    """
    given = [targets] if isinstance(targets, str) else list(targets)
    if given == ["all-linear"]:
        return given[0]
    expressions = [target for target in given if target == "all-linear" or _META.search(target)]
    if expressions and len(given) > 1:
        raise ValueError(
            f"lora_targets must be names, or all-linear or one regular expression alone, got "
            f"{expressions[0]!r} among {len(given)}: join them into one expression by |"
        )
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in given:
        try:
            found = (
                [path for path in paths if re.fullmatch(target, path)]
                if expressions
                else [path for path in paths if _is_meant(path, target)]
            )
        except re.error as error:
            raise ValueError(
                f"lora_targets must be names or a regular expression, got {target!r}: {error}"
            ) from error
        if not found and not _is_embedding(model, target):
            names = sorted({path.rpartition(".")[2] for path in paths})
            raise ValueError(
                f"Target modules {target!r} not found: lora_targets must be linear layers of the "
                f"model, which are {', '.join(names)}, or all-linear"
            )
    return given[0] if expressions else given


def _is_embedding(model: nn.Module, target: str) -> bool:
    """Whether a name is of embeddings, or of another kind of layer that PEFT adapts."""
    kinds = (nn.Embedding, nn.Conv1d, Conv1D)
    modules = model.named_modules()
    return any(_is_meant(p, target) for p, module in modules if isinstance(module, kinds))


def _is_meant(path: str, target: str) -> bool:
    """Whether a name is a module's path, or an end of it, as PEFT looks for it."""
    return path == target or path.endswith(f".{target}")
