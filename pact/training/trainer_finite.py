"""`FiniteTrainer`: what keeps NaN and infinity out of the logs and files of transformers' Trainer.

Trainer's `logging_nan_inf_filter`, on by default, logs such a loss as 0 or as the mean of those
before, and leaves it out of an evaluation's mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pact.training.finite import Watch, check_parameters
from pact_kernels import PactLoss

LOGGED = ("loss", "train_loss")
"""What makes a log one of training, the last among them."""


class FiniteTrainer:
    """A mixin, put before a Trainer, that ends a run where a number is not finite.

    Loss, gradient and weights are looked at before anything is logged or saved, whatever
    `logging_nan_inf_filter` says.
    """

    _watch: Watch | None = None
    """What the training that has begun is watched by."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; what was seen before does not count."""
        self._watch = None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _see(self, loss: PactLoss) -> None:
        """Look at the loss of a micro-batch in training; nothing waits for the device."""
        trainer: Any = self
        step = trainer.state.global_step + 1
        if self._watch is None:
            self._watch = Watch(trainer.args.device, step)
        parts = torch.stack([loss.loss, loss.cross_entropy, loss.kl]).detach()
        self._watch.see(step, parts[None].to(trainer.args.device), 0.0)

    def _see_norm(self, step: int, grad_norm: Tensor | float | None) -> None:
        """Look at the norm of a step's gradient; fp16's scaler leaves bad ones out by itself."""
        trainer: Any = self
        if self._watch is not None and grad_norm is not None and not trainer.args.fp16:
            zeros = torch.zeros(1, 3, device=trainer.args.device)
            self._watch.see(step, zeros, grad_norm)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, of each step, before its update."""
        grad_norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        self._see_norm(trainer.state.global_step + 1, grad_norm)
        return grad_norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own, of numbers.

        Raises:
            ValueError: the loss or the gradient's norm was not finite since training began.
        """
        trainer: Any = self
        if self._watch is not None and any(name in logs for name in LOGGED):
            self._see_norm(trainer.state.global_step, logs.get("grad_norm"))
            self._watch.check(trainer.accelerator, self._newest_checkpoint())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, of losses that are all finite.

        Raises:
            ValueError: one was not.
        """
        trainer: Any = self
        self._lost = torch.zeros((), device=trainer.args.device)
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        lost = int(trainer.accelerator.reduce(self._lost, reduction="sum"))
        if lost:
            raise ValueError(
                f"an evaluation's losses must be finite, got NaN or infinity in {lost} of its "
                "batches: look at the model in fp32, and at the examples"
            )
        return output

    def _see_evaluated(self, loss: Tensor) -> None:
        """Look at the loss of an evaluation's batch."""
        if hasattr(self, "_lost"):
            self._lost += (~loss.detach().isfinite()).to(self._lost)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, of a model that is finite in all processes."""
        trainer: Any = self
        self._check_finite(trainer.accelerator)
        return super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, of a model that is finite; one process may call it alone.

        Raises:
            ValueError: a parameter, or a loss before, is not finite.
        """
        self._check_finite(None)
        super().save_model(*args, **kwargs)  # type: ignore[misc]

    def _check_finite(self, accelerator: Any) -> None:
        trainer: Any = self
        newest = self._newest_checkpoint()
        if self._watch is not None:
            self._watch.check(accelerator, newest)
        model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if named:
            check_parameters(named, newest, trainer.state.global_step, accelerator)

    def _newest_checkpoint(self) -> Path | None:
        trainer: Any = self
        found = Path(trainer.args.output_dir or ".").glob("checkpoint-*")
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
