"""`PactSFTTrainer`: TRL's SFTTrainer, which prepares the data, with the loss of `PactTrainer`.

TRL renders, tokenises and labels. Every labelled token then gets its step within its answer, before
truncation or packing may cut the answer, and the batches are those of `pact.data`: padded, or the
sequences of packed examples end to end with attention within each. Blocks of the wrapped strategy
hold no boundaries; they are one sequence each, as TRL has them.

Written for trl 1.16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer, pack_dataset

from pact.data.collate import Collator, pad_id
from pact.data.packing import PackedCollator
from pact.data.spans import IGNORE
from pact.data.template import header_ids
from pact.models.loading import load_tokenizer
from pact.objective import Objective, PactConfig
from pact.training.trainer import PactTrainer, make_objective

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens

STEPS, LENGTHS = "answer_steps", "seq_lengths"
"""Columns: of each token, its place in its answer; and TRL's, of a packed example's sequences."""
CUTTING = ("bfd_split", "wrapped")
"""Packing strategies that go on with an answer in another line."""


class PactSFTTrainer(PactTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss is the mean cross-entropy plus the pull on the safety tokens.

    Data sets, `SFTConfig`, `peft_config`, `formatting_func` and all else mean what they mean to
    SFTTrainer; the loss, its denominator, evaluation and checks are `PactTrainer`'s.

    Args:
        model: a causal language model, or the name or folder of one.
        args: completion-only and assistant-only masks, packing (bfd, bfd_split, wrapped) and
            `padding_free` are honoured. `loss_type` is "nll".
        tokens: the safety tokens; with `pact` they make the objective.
        pact: the objective's settings; the default is `PactConfig()`.
        objective: a ready objective, instead of `tokens` and `pact`.
        processing_class: the tokenizer; the default is the model's.
        **options: SFTTrainer's other arguments, and `reference` of `PactTrainer`.

    Raises:
        ValueError: a setting that cannot be honoured; see `PactTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *,
        tokens: SafetyTokens | None = None,
        pact: PactConfig | None = None,
        objective: Objective | None = None,
        processing_class: Any = None,
        **options: Any,
    ) -> None:
        objective = make_objective(tokens, pact, objective)
        if processing_class is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            processing_class = load_tokenizer(name)
        _check(args, objective, processing_class, options)
        if tokens is not None:
            tokens.check_tokenizer(processing_class)
        super().__init__(
            model,
            args,
            objective=objective,
            data_collator=_collator(args, objective, processing_class),
            processing_class=processing_class,
            **options,
        )

    def _collator_of_trainer(self, collator: Any) -> None:
        """None: SFTTrainer takes no other where it packs; `PactTrainer` sets its own after it."""

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Any:
        """SFTTrainer's, with steps beside the labels before anything is cut."""
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(
            dataset, processing_class, whole, False, formatting_func, dataset_name
        )
        on_disk = isinstance(dataset, Dataset)
        options = {"num_proc": args.dataset_num_proc} if on_disk else {}
        if LENGTHS in (dataset.column_names or ()):  # packed by the user
            return dataset
        columns = ["input_ids", "labels", STEPS]
        dataset = dataset.map(with_steps, **options).select_columns(columns)
        if not packing and args.max_length is not None:
            first = args.truncation_mode == "keep_start"
            cut = slice(None, args.max_length) if first else slice(-args.max_length, None)
            dataset = dataset.map(_truncated, fn_kwargs={"cut": cut}, **options)
            dataset = dataset.filter(_is_labelled, **options)
        if args.shuffle_dataset:
            dataset = dataset.shuffle(seed=args.seed)
        if packing:
            if args.max_length is None:
                raise ValueError("packing fills lines of max_length tokens, got None: set it")
            dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, options)
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if STEPS not in self._signature_columns:
            self._signature_columns.append(STEPS)


def with_steps(example: Mapping[str, Any]) -> dict[str, Any]:
    """Beside each label its place in its run of labels, from 0; 0 elsewhere."""
    steps, step = [], 0
    for label in example["labels"]:
        steps.append(0 if label == IGNORE else step)
        step = 0 if label == IGNORE else step + 1
    return {STEPS: steps}


def _truncated(example: Mapping[str, Any], cut: slice) -> dict[str, Any]:
    return {name: values[cut] for name, values in example.items()}


def _is_labelled(example: Mapping[str, Any]) -> bool:
    return any(label != IGNORE for label in example["labels"][1:])


class _OfTrl:
    """A collator of TRL's examples: several sequences in one, and steps by token."""

    def __call__(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Collate examples as `PactSFTTrainer` prepares them."""
        sequences = [part for example in examples for part in split(example)]
        batch: dict[str, Tensor] = super().__call__(sequences)  # type: ignore[misc]
        if sequences and all(STEPS in part for part in sequences):
            batch["row_step"] = torch.tensor(
                [
                    step
                    for part in sequences
                    for step, label in zip(part[STEPS][1:], part["labels"][1:], strict=True)
                    if label != IGNORE
                ],
                dtype=torch.int64,
            )
        return batch


def split(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sequences of a packed example, by `seq_lengths`; else itself.

    Raises:
        ValueError: the lengths are not those of the example.
    """
    names = [name for name in ("input_ids", "labels", STEPS) if name in example]
    values = {name: torch.as_tensor(example[name]).tolist() for name in names}
    lengths = example.get(LENGTHS)
    if lengths is None:
        return [values]
    if sum(lengths) != len(values["input_ids"]):
        raise ValueError(
            f"seq_lengths must add up to an example's tokens, got {sum(lengths)} for "
            f"{len(values['input_ids'])}: pack it with trl.pack_dataset"
        )
    parts, start = [], 0
    for length in lengths:
        parts.append({name: values[name][start : start + length] for name in names})
        start += length
    return parts


class TrlCollator(_OfTrl, Collator):
    """Padded lines."""


class TrlPackedCollator(_OfTrl, PackedCollator):
    """The sequences end to end in full lines, attention within each."""


def _collator(args: SFTConfig | None, objective: Objective, tokenizer: Any) -> Collator:
    post_only = objective.needs_post_only
    header = header_ids(tokenizer) if post_only else ()
    given = header, pad_id(tokenizer), post_only
    if args is not None and (args.padding_free or args.packing or args.eval_packing):
        length = args.max_length if args.packing or args.eval_packing else None
        return TrlPackedCollator(*given, pack_length=length)
    return TrlCollator(*given)


def _check(
    args: SFTConfig | None, objective: Objective, tokenizer: Any, options: Mapping[str, Any]
) -> None:
    if options.get("data_collator") is not None:
        raise ValueError(
            "PactSFTTrainer collates by itself, since batches need answer rows, got data_collator: "
            "leave it unset, or use pact.PactTrainer with encoded data"
        )
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ValueError(
            f"processing_class must be a tokenizer, got {type(tokenizer).__name__}: models of text "
            "alone are supported"
        )
    if args is None:
        return
    if getattr(args, "loss_type", "nll") != "nll":
        raise ValueError(f"the loss is the objective's own, got loss_type={args.loss_type!r}")
    prepared = args.dataset_kwargs
    skips = isinstance(prepared, dict) and prepared.get("skip_prepare_dataset")
    if objective.needs_post_only and args.packing and args.packing_strategy in CUTTING:
        raise ValueError(
            f"a gate needs whole answers, got packing_strategy={args.packing_strategy!r}, which "
            "cuts them: use 'bfd', or gate=False"
        )
    if skips and args.packing:
        raise ValueError(
            "skip_prepare_dataset=True leaves a data set unpacked, got packing=True: pack it with "
            "trl.pack_dataset and set padding_free=True"
        )
