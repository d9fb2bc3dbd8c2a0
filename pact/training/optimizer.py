"""The optimiser of a run, by transformers' name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from pact.training.config import FitConfig


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: FitConfig, kind: Any, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimiser, with decay on matrices alone."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = kind(groups, **options)
    return optimizer


def check_optimizer(config: FitConfig) -> None:
    """Refuse an optimiser that transformers has no name for; its package is not looked for.

    Raises:
        ValueError: there is none of this name.
    """
    known = [kind.value for kind in OptimizerNames]
    if config.optimizer not in known:
        raise ValueError(
            f"optimizer {config.optimizer!r} cannot be had: transformers knows {', '.join(known)}"
        )


def optimizer_kind(config: FitConfig) -> tuple[Any, dict[str, Any]]:
    """Class and settings of the optimiser of a name, as transformers has them.

    It is asked for before there is an `Accelerator`, whose state its arguments would reset.

    Raises:
        ValueError: there is none of this name, or its package is not installed.
    """
    if config.optimizer == FitConfig.optimizer:
        return torch.optim.AdamW, {"lr": config.learning_rate}
    check_optimizer(config)
    try:
        given = TrainingArguments(
            "unused", optim=config.optimizer, learning_rate=config.learning_rate, report_to="none"
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(given)
    except (ValueError, ImportError) as error:
        cause = " ".join(str(error).split())[:400]
        raise ValueError(f"optimizer {config.optimizer!r} cannot be had: {cause}") from error
    return kind, options
