"""Which settings of transformers' Trainer `PactTrainer` cannot honour, and why.

Everything else in TrainingArguments means there what it means for Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import TrainingArguments

from pact.common.fields import Bounds
from pact.data.anchors import anchors_of

NO_LOGITS = "logits are never formed: evaluate the saved model with `pact evaluate`"
OWN_LOSS = "the loss is the objective's own"
UNSHARDED = "the head's weight must be whole in every process: use DDP"


class Refusal(NamedTuple):
    """When a setting is refused, and what to do instead."""

    asks: Callable[[Any], bool]
    reason: str


def _is_set(value: Any) -> bool:
    return bool(value)


ARGUMENTS: Mapping[str, Refusal] = {
    "label_smoothing_factor": Refusal(_is_set, f"{OWN_LOSS}, without smoothing: leave it 0"),
    "torch_compile": Refusal(_is_set, "the backbone is called by itself: leave it off"),
    "torch_compile_backend": Refusal(_is_set, "nothing is compiled: leave it unset"),
    "torch_compile_mode": Refusal(_is_set, "nothing is compiled: leave it unset"),
    "use_liger_kernel": Refusal(
        _is_set,
        "the loss is fused here already: leave it off, and patch the layers alone by "
        "liger's apply_liger_kernel_to_... with fused_linear_cross_entropy=False",
    ),
    "liger_kernel_config": Refusal(_is_set, "use_liger_kernel is refused: leave it unset"),
    "use_cache": Refusal(_is_set, "no cache is kept in training: leave it off"),
    "bf16_full_eval": Refusal(_is_set, "it casts the model away from its reference: use bf16"),
    "fp16_full_eval": Refusal(_is_set, "it casts the model away from its reference: use bf16"),
    "average_tokens_across_devices": Refusal(
        lambda value: not value, "the denominator is the rows of all processes: leave it on"
    ),
    "label_names": Refusal(
        lambda value: value not in (None, [], ["labels"]), "labels are in the column labels"
    ),
    "include_for_metrics": Refusal(_is_set, NO_LOGITS),
    "batch_eval_metrics": Refusal(_is_set, NO_LOGITS),
    "eval_do_concat_batches": Refusal(lambda value: not value, NO_LOGITS),
    "fsdp": Refusal(_is_set, UNSHARDED),
    "fsdp_config": Refusal(lambda value: bool(value) and any(value.values()), UNSHARDED),
    "deepspeed": Refusal(_is_set, UNSHARDED),
    "parallelism_config": Refusal(_is_set, UNSHARDED),
}
"""By field of TrainingArguments."""

NUMBERS = {
    "learning_rate": Bounds(0, 100),
    "weight_decay": Bounds(0, 10**9),
    "adam_beta1": Bounds(0, 1, open_most=True),
    "adam_beta2": Bounds(0, 1, open_most=True),
    "adam_epsilon": Bounds(0, 1),
    "max_grad_norm": Bounds(0, 10**9, or_inf=True),
    "neftune_noise_alpha": Bounds(0, 10**6),
}
"""Fields of TrainingArguments that Trainer takes as they are: NaN there switches off in silence."""

OPTIONS: Mapping[str, Refusal] = {
    "compute_metrics": Refusal(
        lambda value: value is not None,
        "it needs logits, which PactTrainer never forms: leave it unset, or evaluate the saved "
        "model with `pact evaluate`",
    ),
    "preprocess_logits_for_metrics": Refusal(lambda value: value is not None, NO_LOGITS),
    "compute_loss_func": Refusal(lambda value: value is not None, f"{OWN_LOSS}: leave it unset"),
    "model_init": Refusal(
        lambda value: value is not None,
        "the reference is of the model that is given, not of others made later: give model",
    ),
}
"""By argument of Trainer."""


def check_settings(args: TrainingArguments | None, options: Mapping[str, Any]) -> None:
    """Refuse settings and arguments that would have no effect, or another than they say.

    Raises:
        ValueError: one of them is set.
    """
    for name, refusal in OPTIONS.items():
        if refusal.asks(options.get(name)):
            raise ValueError(f"PactTrainer cannot honour {name}: {refusal.reason}")
    if args is None:
        return
    check_numbers(args)
    for name, refusal in ARGUMENTS.items():
        default = TrainingArguments.__dataclass_fields__.get(name)
        value = getattr(args, name, None)
        if default is not None and refusal.asks(value):
            raise ValueError(f"PactTrainer cannot honour {name}={value!r}: {refusal.reason}")


def check_numbers(args: TrainingArguments) -> None:
    """Refuse numbers that mean nothing, for any Trainer.

    Raises:
        ValueError: there is one; it names the field.
    """
    for name, bounds in NUMBERS.items():
        value = getattr(args, name, None)
        if isinstance(value, (int, float)) and not bounds.holds(value):
            raise ValueError(f"{name} must be {bounds.need(value)}, got {value!r}")


def check_batches(args: TrainingArguments, is_iterable: bool) -> None:
    """Refuse batches that are cut apart after they were collated.

    Accelerate dispatches a batch by cutting each of its tensors alike, and the rows of a batch are
    as many as its answers have, not as its examples.

    Raises:
        ValueError: batches would be dispatched to several processes.
    """
    dispatch = getattr(args.accelerator_config, "dispatch_batches", None)
    if args.world_size > 1 and (is_iterable if dispatch is None else dispatch):
        raise ValueError(
            "batches of answer rows cannot be dispatched from one process to several, got "
            f"dispatch_batches={dispatch}: set accelerator_config={{'dispatch_batches': False}}"
        )


def check_sampling(args: TrainingArguments, dataset: Any) -> None:
    """Refuse to draw anchors by length: they are short, and would come in steps of their own.

    Raises:
        ValueError: the sampler would gather them.
    """
    strategy = args.train_sampling_strategy
    if strategy == "group_by_length" and hasattr(dataset, "__len__") and anchors_of(dataset).any():
        raise ValueError(
            f"PactTrainer cannot honour train_sampling_strategy={strategy!r} for data with "
            "anchors, which are short and would come in steps of their own: leave it 'random', or "
            "train by pact.training.train with group_by_length, whose steps have of either alike"
        )
