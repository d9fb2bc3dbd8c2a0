"""`PatchedTrainer`: put before any subclass of transformers' Trainer, it patches the model.

For trainers that are not the package's own: LLaMA-Factory's, Axolotl's, a team's. They keep their
data, collators and `compute_loss`; the model's forward returns the loss, see `pact.patch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pact.integrations.transformers_models import (
    Live,
    forget_loss,
    is_patched,
    last_loss,
    patch,
)
from pact.objective import PactConfig
from pact.training.trainer_finite import FiniteTrainer
from pact.training.trainer_settings import check_numbers

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens

PARTS = ("cross_entropy", "kl")
OWN_LOSSES = ("label_smoothing_factor", "use_liger_kernel")
"""Settings of TrainingArguments that put another loss in the place of the model's."""


class PatchedTrainer(FiniteTrainer):
    """A mixin: `class Mine(PatchedTrainer, TheirTrainer)`.

    The denominator of the loss is the trainer's `num_items_in_batch`. A training log has the
    cross-entropy and the KL beside the loss, as means since the last one. A loss, gradient or
    parameter that is not finite ends the run before anything is logged or saved, whatever
    `logging_nan_inf_filter` says.

    Args:
        tokens: the safety tokens; without them the loss is the fused cross-entropy.
        pact: the objective's settings.
        reference: the frozen model; the default is the model without its adapters, or a copy.
        *args: the trainer's own.
        **kwargs: the trainer's own.

    Raises:
        ValueError: as `pact.patch`; a setting that replaces the model's loss, needs logits, or is a
            number that means nothing.
    """

    def __init__(
        self,
        *args: Any,
        tokens: SafetyTokens | None = None,
        pact: PactConfig | None = None,
        reference: Live | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        check_numbers(trainer.args)
        for name in OWN_LOSSES:
            if getattr(trainer.args, name, None):
                raise ValueError(f"the model's forward gives the loss, got {name}: leave it unset")
        for name in ("compute_loss_func", "compute_metrics"):
            if getattr(trainer, name, None) is not None:
                raise ValueError(
                    f"the model's forward gives the loss, and no logits, got {name}: leave it unset"
                )
        if not is_patched(trainer.model):
            patch(trainer.model, tokens=tokens, pact=pact, reference=reference)
        elif tokens is not None:
            raise ValueError("the model is patched already, got tokens too: give them once")
        self._sums = torch.zeros(len(PARTS), device=trainer.args.device)
        self._summed_from: int | None = None  # the step of the last log, once training has begun

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own."""
        self._sums.zero_()
        self._summed_from = None
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The trainer's own, whose model gives the loss.

        Raises:
            ValueError: it formed the loss elsewhere.
        """
        own: Any = super()
        forget_loss(model)
        loss = own.compute_loss(
            model,
            inputs,
            return_outputs=return_outputs,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )
        found = last_loss(model)
        if found is None:
            raise ValueError(
                f"{type(self).__name__} forms its loss without the forward of the patched model, "
                "so the loss is not pact's: use pact.PactTrainer, or pact.integrations.trl"
            )
        if model.training:
            if self._summed_from is None:
                self._summed_from = self.state.global_step  # type: ignore[attr-defined]
            self._sums += torch.stack([found.cross_entropy.float(), found.kl.float()])
            self._see(found)
        else:
            self._see_evaluated(found.loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to a training log."""
        trainer: Any = self
        steps = 0 if self._summed_from is None else trainer.state.global_step - self._summed_from
        if "loss" in logs and steps > 0:
            share = 1.0
            counted = getattr(trainer, "model_accepts_loss_kwargs", True)
            if not counted:
                share = trainer.args.gradient_accumulation_steps  # means of micro-batches
            # Each process's parts are over the rows of all, or over its own.
            over_all = counted and trainer.args.average_tokens_across_devices
            sums = trainer.accelerator.reduce(self._sums, "sum" if over_all else "mean")
            values = (sums / (steps * share)).tolist()
            logs.update(zip(PARTS, values, strict=True))
            self._sums.zero_()
            self._summed_from = trainer.state.global_step
        super().log(logs, *args, **kwargs)
