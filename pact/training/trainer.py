"""`PactTrainer`: transformers.Trainer with the loss of `pact.training.loop.fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from pact.config import PactConfig
from pact.data.collate import Collator
from pact.data.template import header_ids
from pact.objective import PactObjective
from pact.reference import AdaptersOff, FrozenModel, Reference, check_at_start
from pact.training.student import batch_loss, check_collator
from pact_kernels import PactLoss

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens


class PactTrainer(Trainer):
    """Trainer whose loss is the mean cross-entropy plus the pull on the safety tokens.

    The denominator is the number of answer rows of the whole optimiser step, over accumulation
    steps and processes, so `gradient_accumulation_steps` does not change the result. Logits are
    never formed: an evaluation yields its loss alone. It runs in one process, or in one per GPU
    (DDP).

    Args:
        model: a causal language model, with or without PEFT adapters.
        args: as for Trainer; `bf16=True` covers the reference too.
        tokens: the safety tokens; with `pact` they make the objective.
        pact: the objective's settings; the default is `PactConfig()`.
        objective: a ready objective, instead of `tokens` and `pact`.
        reference: the frozen model; the default is the model itself, adapters off or copied.
        data_collator: the default is a `Collator` for the tokenizer in `processing_class`; a
            `PackedCollator` leaves padding out.
        processing_class: the tokenizer.
        **options: Trainer's other arguments. Data sets have the columns `input_ids` and `labels`,
            as `pact.data.dataset.encode_examples` makes them.

    Raises:
        ValueError: neither tokens nor objective, or both; `compute_metrics`, which needs logits;
            several GPUs in one process.
    """

    loss_is_scaled_for_ga = True  # by num_items_in_batch

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        tokens: SafetyTokens | None = None,
        pact: PactConfig | None = None,
        objective: PactObjective | None = None,
        reference: Reference | None = None,
        data_collator: Callable[[list[Any]], dict[str, Tensor]] | None = None,
        processing_class: Any = None,
        **options: Any,
    ) -> None:
        self.objective = _objective(tokens, pact, objective)
        if options.get("compute_metrics") is not None:
            raise ValueError(
                "compute_metrics needs logits, which PactTrainer never forms: leave it unset, or "
                "evaluate the saved model with `pact evaluate`"
            )
        if data_collator is None:
            data_collator = _collator(processing_class, self.objective)
        super().__init__(
            model, args, data_collator=data_collator, processing_class=processing_class, **options
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"PactTrainer runs one process per GPU, got {self.args.n_gpu} GPUs in one process: "
                "start it with torchrun or accelerate launch"
            )
        self.model_accepts_loss_kwargs = True  # Trainer then leaves the loss's scale alone
        self.reference = self._default_reference() if reference is None else reference
        if isinstance(self.reference, FrozenModel):
            self.reference.model.to(self.args.device)
        with self.accelerator.autocast():
            check_collator(data_collator, self.model, self.reference)
        self._unchecked = self.objective.needs_reference
        self._sums = torch.zeros(3, device=self.args.device)  # cross-entropy, KL, gate
        self._summed_from = 0  # the step of the last log

    def _default_reference(self) -> Reference | None:
        if not self.objective.needs_reference:
            return None
        if hasattr(self.model, "disable_adapter"):
            return AdaptersOff(self.model)
        return FrozenModel(copy.deepcopy(self.model))

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the column by which a cached reference knows an example."""
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "example" not in self._signature_columns:
            self._signature_columns.append("example")

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of a step, and the number of its rows over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = torch.tensor(sum(batch["row_target"].numel() for batch in batches), device=device)
        return batches, self.accelerator.reduce(rows, reduction="sum").clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one batch; without `num_items_in_batch` the mean over its own rows."""
        inner = self.accelerator.unwrap_model(model)
        forward = partial(batch_loss, inner, self.objective, self.reference)
        with self.accelerator.autocast():
            if self._unchecked:
                check_at_start(inner, self.reference, inputs, self.objective)
                self._unchecked = False
            loss = _call_through(model, inner, forward, inputs, num_items_in_batch)
        total = loss.loss
        if num_items_in_batch is not None:
            total = total * self.accelerator.num_processes  # whose gradients are averaged
            gate = loss.mean_gate * loss.num_rows / num_items_in_batch
            self._sums += torch.stack([loss.cross_entropy.float(), loss.kl.float(), gate.float()])
        return (total, {"loss": total}) if return_outputs else total

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one batch; there are no logits to return."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of cross-entropy, KL and gate since the last log to a training log."""
        steps = self.state.global_step - self._summed_from
        if "loss" in logs and steps > 0:
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            means = (value / steps for value in sums)
            logs |= zip(("cross_entropy", "kl", "gate"), means, strict=True)
            self._sums.zero_()
            self._summed_from = self.state.global_step
        super().log(logs, start_time)


def _objective(
    tokens: SafetyTokens | None, pact: PactConfig | None, objective: PactObjective | None
) -> PactObjective:
    if (tokens is None) == (objective is None):
        raise ValueError(
            "PactTrainer takes either tokens (and pact) or an objective, got "
            f"{'neither' if tokens is None else 'both'}"
        )
    if objective is not None:
        return objective
    assert tokens is not None
    return PactObjective(tokens.ids, tokens.weights, pact or PactConfig())


def _collator(tokenizer: Any, objective: PactObjective) -> Collator:
    if tokenizer is None:
        raise ValueError(
            "PactTrainer collates with the tokenizer's header and pad token, got no tokenizer: "
            "give it as processing_class, or give a data_collator"
        )
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    return Collator(header, pad, post_only=objective.needs_post_only)


def _call_through(
    wrapper: nn.Module, inner: nn.Module, forward: Callable[..., PactLoss], *inputs: Any
) -> PactLoss:
    """`forward(*inputs)` as if it were the forward of `inner`, by way of what wraps it.

    DDP prepares the reduction of the gradients in its own forward. Trainer and users need `inner`
    with the forward that it has, so it is exchanged for this call alone.
    """
    if wrapper is inner:
        return forward(*inputs)
    own = inner.__dict__.get("forward")
    inner.forward = forward
    try:
        return wrapper(*inputs)
    finally:
        del inner.forward
        if own is not None:
            inner.forward = own
