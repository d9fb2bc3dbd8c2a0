"""`PactTrainer`: transformers.Trainer with the loss of `pact.training.loop.fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from pact.common.launched import check_joined
from pact.data.anchors import ANCHOR
from pact.data.collate import Collator, count_rows, denominator, learnt_rows, pad_id
from pact.data.packing import PackedCollator
from pact.data.template import header_ids, with_template_defaults
from pact.models import head_weight
from pact.objective import Objective, PactConfig, PactObjective
from pact.reference import AdaptersOff, FrozenModel, Reference, check_at_start
from pact.training.checks import check_anchors, check_rows, check_training
from pact.training.saving import stop_at_turns
from pact.training.student import batch_loss
from pact.training.trainer_batches import CheckedCollator, check_columns, first_examples
from pact.training.trainer_finite import FiniteTrainer
from pact.training.trainer_settings import check_batches, check_sampling, check_settings
from pact_kernels import PactLoss

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens

PARTS = ("cross_entropy", "kl", "gate")


class PactTrainer(FiniteTrainer, Trainer):  # type: ignore[misc]
    """Trainer whose loss is the mean cross-entropy plus the pull on the safety tokens.

    The denominator is the number of answer rows of the whole optimiser step, over accumulation
    steps and processes, so `gradient_accumulation_steps` does not change the result. An evaluation
    weighs its rows alike, so its loss does not depend on the batch size; it is without logits. It
    runs in one process, or in one per GPU (DDP). A loss, gradient or parameter that is not finite
    ends the run before anything is logged or saved, whatever `logging_nan_inf_filter` says.

    Args:
        model: a causal language model, with or without PEFT adapters.
        args: as for Trainer; `bf16=True` covers the reference too. What cannot be honoured is
            refused, see `pact.training.trainer_settings`.
        tokens: the safety tokens; with `pact` they make the objective.
        pact: the objective's settings; the default is `PactConfig()`.
        objective: a ready objective, instead of `tokens` and `pact`.
        reference: the frozen model; the default is the model itself, adapters off or copied.
        data_collator: the default is a `Collator` for the tokenizer in `processing_class`; a
            `PackedCollator` leaves padding out.
        processing_class: the tokenizer.
        chat_template_kwargs: variables of its chat template that the data were encoded with; the
            tokenizer that is saved keeps them as defaults.
        **options: Trainer's other arguments. Data sets have the columns `input_ids` and `labels`,
            as `pact.data.dataset.encode_examples` makes them, and may have an `attention_mask`.

    Raises:
        ValueError: neither tokens nor objective, or both; the tokens are another tokenizer's; a
            setting or argument that cannot be honoured; a model, reference or data set that `fit`
            would refuse; several GPUs in one process.
    """

    loss_is_scaled_for_ga = True  # by num_items_in_batch

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        tokens: SafetyTokens | None = None,
        pact: PactConfig | None = None,
        objective: Objective | None = None,
        reference: Reference | None = None,
        data_collator: Callable[[list[Any]], dict[str, Tensor]] | None = None,
        processing_class: Any = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.objective = make_objective(tokens, pact, objective)
        check_settings(args, options)
        if chat_template_kwargs and processing_class is None:
            raise ValueError(
                "chat_template_kwargs are of the tokenizer's chat template, got no tokenizer: give "
                "it as processing_class"
            )
        processing_class = with_template_defaults(processing_class, chat_template_kwargs)
        if data_collator is None:
            data_collator = _collator(processing_class, self.objective)
        if tokens is not None and processing_class is not None:
            tokens.check_tokenizer(processing_class)
        super().__init__(
            model,
            args,
            data_collator=self._collator_of_trainer(data_collator),
            processing_class=processing_class,
            **options,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"PactTrainer runs one process per GPU, got {self.args.n_gpu} GPUs in one process: "
                "start it with torchrun or accelerate launch"
            )
        for name in ("train_dataset", "eval_dataset"):  # as a trainer between may have made them
            check_columns(name, getattr(self, name))
        check_anchors(self.objective, self.train_dataset)
        check_joined(self.args.world_size)
        check_sampling(self.args, self.train_dataset)
        check_batches(self.args, isinstance(self.train_dataset, IterableDataset))
        self.model_accepts_loss_kwargs = True  # Trainer then leaves the loss's scale alone
        self.reference = self._default_reference() if reference is None else reference
        if isinstance(self.reference, FrozenModel):
            self.reference.model.to(self.args.device)
        with self.accelerator.autocast():
            check_training(self.model, self.objective, self.reference, data_collator)
        self._is_packed = isinstance(data_collator, PackedCollator)
        self.data_collator = CheckedCollator(data_collator, head_weight(self.model).shape[0])
        self._unchecked = self.objective.needs_reference
        self._is_first_step = True
        self._sums = torch.zeros(3, device=self.args.device)  # cross-entropy, KL, gate
        self._summed_from: int | None = None  # the step of the last log, once training has begun
        self._seen = torch.zeros(5, device=self.args.device)  # of an evaluation: those, loss, rows

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; what was summed and seen before does not count."""
        self._sums.zero_()
        self._summed_from = None
        return super().train(*args, **kwargs)

    def _collator_of_trainer(self, collator: Any) -> Any:
        """What Trainer is given; batches come from the checked collator, set after it."""
        return collator

    def _default_reference(self) -> Reference | None:
        if not self.objective.needs_reference:
            return None
        if hasattr(self.model, "disable_adapter"):
            return AdaptersOff(self.model)
        return FrozenModel(copy.deepcopy(self.model))

    def _set_signature_columns_if_needed(self) -> None:
        """Keep what a cached reference knows an example by, and what says that it is an anchor."""
        super()._set_signature_columns_if_needed()
        for name in ("example", ANCHOR):
            if self._signature_columns is not None and name not in self._signature_columns:
                self._signature_columns.append(name)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of a step, and the number of its rows over all processes.

        Raises:
            ValueError: the first step has no row: no label is set.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = self.accelerator.reduce(count_rows(batches, device), reduction="sum")  # (2,)
        if self._is_first_step and batches:
            self._is_first_step = False
            check_rows(int(rows.sum()))
        return batches, denominator(rows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one batch; without `num_items_in_batch` the mean over its own rows."""
        is_alone = model is self.accelerator.unwrap_model(model)
        if num_items_in_batch is not None and self.args.world_size > 1 and is_alone:
            raise ValueError(
                "in several processes gradients must be reduced, got a student that nothing wraps: "
                "Trainer leaves it so after an evaluate() before train(); set eval_on_start=True "
                "instead"
            )
        loss = self._batch_loss(model, inputs, num_items_in_batch)
        total = loss.loss
        if num_items_in_batch is not None:
            if self._summed_from is None:
                self._summed_from = self.state.global_step
            self._see(loss)
            total = total * self.accelerator.num_processes  # whose gradients are averaged
            gate = loss.mean_gate * loss.num_rows / num_items_in_batch
            self._sums += torch.stack([loss.cross_entropy.float(), loss.kl.float(), gate.float()])
        return (total, {"loss": total}) if return_outputs else total

    def _batch_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None
    ) -> PactLoss:
        inner = self.accelerator.unwrap_model(model)
        forward = partial(batch_loss, inner, self.objective, self.reference)
        with self.accelerator.autocast():
            if self._unchecked:
                check_at_start(inner, self.reference, inputs, self.objective)
                self._unchecked = False
            return _call_through(model, inner, forward, inputs, num_items)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one batch, which `evaluation_loop` weighs; there are no logits to return."""
        inputs = self._prepare_inputs(first_examples(inputs, self._own_examples(inputs)))
        with torch.no_grad():
            loss = self._batch_loss(model, inputs, None)
        self._see_evaluated(loss.loss)
        parts = torch.stack([loss.cross_entropy, loss.kl, loss.mean_gate, loss.loss]).float()
        rows = learnt_rows(inputs)
        self._seen += torch.cat([parts * rows, parts.new_tensor([rows])])
        return loss.loss.detach(), None, None

    def _own_examples(self, inputs: dict[str, Any]) -> int:
        """Examples of this process's batch that no other has: the last batches are filled up."""
        size, state = len(inputs["labels"]), self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return size
        if self._is_packed:
            raise ValueError(
                "packed batches cannot be evaluated in several processes where the last one is not "
                "full: evaluate with a Collator, or with a number of examples that all share alike"
            )
        before = self.args.process_index * self.args.per_device_eval_batch_size
        return min(max(state.remainder - before, 0), size)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, whose loss is the mean over all rows, with its parts beside it.

        Raises:
            ValueError: there is no row.
        """
        self._seen.zero_()
        output = super().evaluation_loop(*args, **kwargs)
        *sums, rows = self.accelerator.reduce(self._seen, reduction="sum").tolist()
        if rows == 0:
            raise ValueError(
                "an evaluation needs answer tokens to predict, got none: every label is -100; "
                "encode the data with pact.data.dataset.encode_examples"
            )
        prefix = kwargs.get("metric_key_prefix", "eval")
        names = (*PARTS, "loss") if self.objective.needs_reference else ("loss",)
        values = dict(zip((*PARTS, "loss"), (value / rows for value in sums), strict=True))
        output.metrics.update({f"{prefix}_{name}": values[name] for name in names})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of cross-entropy, KL and gate since the last log to a training log.

        Raises:
            ValueError: the loss or the gradient's norm was not finite since then.
        """
        steps = 0 if self._summed_from is None else self.state.global_step - self._summed_from
        if "loss" in logs and steps > 0:
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            logs |= zip(PARTS, (value / steps for value in sums), strict=True)
            self._sums.zero_()
            self._summed_from = self.state.global_step
        super().log(logs, start_time)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, of a model that is finite, and that stops where a turn ends."""
        if self.processing_class is not None:
            stop_at_turns(self.accelerator.unwrap_model(self.model), self.processing_class)
        super().save_model(*args, **kwargs)


def make_objective(
    tokens: SafetyTokens | None, pact: PactConfig | None, objective: Objective | None
) -> Objective:
    """The objective of a trainer's arguments.

    Raises:
        ValueError: neither tokens nor objective, or both.
    """
    if (tokens is None) == (objective is None):
        raise ValueError(
            "PactTrainer takes either tokens (and pact) or an objective, got "
            f"{'neither' if tokens is None else 'both'}"
        )
    if objective is not None:
        return objective
    assert tokens is not None
    return PactObjective(tokens.ids, tokens.weights, pact or PactConfig())


def _collator(tokenizer: Any, objective: Objective) -> Collator:
    if tokenizer is None:
        raise ValueError(
            "PactTrainer collates with the tokenizer's header and pad token, got no tokenizer: "
            "give it as processing_class, or give a data_collator"
        )
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    return Collator(header, pad_id(tokenizer), post_only=objective.needs_post_only)


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
