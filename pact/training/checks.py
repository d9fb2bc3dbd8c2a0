"""What a student, its reference and its batches must be, whichever way it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from pact.data.anchors import anchors_of
from pact.data.packing import PackedCollator
from pact.models import backbone, causal_lm, check_head, check_packing, head_weight
from pact.models.whole import check_finite
from pact.objective import Objective, PactObjective
from pact.objective.pact import holds_anchors_only
from pact.reference import FrozenModel, Reference

NO_ANCHORS = (
    "anchors_only holds the rows of anchors alone, got data without any: give anchors "
    "(`pact refusals --keep all` writes them), or leave it off"
)


def check_training(
    model: nn.Module, objective: Objective, reference: Reference | None, collator: object
) -> dict[str, nn.Parameter]:
    """Everything that can be known before the first batch.

    Args:
        model: the student, as it is to be trained.
        objective: what is minimised.
        reference: the frozen model; None where the objective needs none.
        collator: what makes the batches.

    Returns:
        What the optimiser changes, by name.

    Raises:
        ValueError: one of them cannot work; the message says which, and what to do.
    """
    if objective.needs_reference and reference is None:
        raise ValueError(
            "this objective needs a reference, got None: use AdaptersOff or FrozenModel"
        )
    parameters = trainable_parameters(model)
    backbone(model)
    check_finite(model, "the model")
    if isinstance(reference, FrozenModel):
        check_finite(reference.model, "the reference")
    check_apart(model)
    check_tied(model)
    check_head(model)
    if isinstance(reference, FrozenModel):
        check_head(reference.model)
    vocabulary = head_weight(model).shape[0]
    largest = int(objective.token_ids.max()) if isinstance(objective, PactObjective) else -1
    if largest >= vocabulary:
        raise ValueError(
            f"safety tokens must be below the model's vocabulary of {vocabulary}, got {largest}: "
            "run `pact discover` for this model"
        )
    check_collator(collator, model, reference)
    return parameters


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


def check_apart(model: nn.Module) -> None:
    """Refuse adapters that are merged into the weights below: PEFT then leaves all of them out.

    Raises:
        ValueError: there are such adapters.
    """
    for path, module in model.named_modules():
        merged = getattr(module, "merged_adapters", None)
        if merged:
            raise ValueError(
                f"adapters must be apart from the weights below to be trained, got {merged[0]!r} "
                f"merged into {path}: call unmerge_adapter(), or merge_and_unload() before new "
                "adapters are put on"
            )


def check_tied(model: nn.Module) -> None:
    """Refuse adapters on embeddings that are the head's weight too.

    In training they are on the one and not on the other; merged, or saved and loaded, they are on
    both or on neither, and the logits are others.

    Raises:
        ValueError: there are such adapters.
    """
    causal = causal_lm(model)
    config = causal.config.get_text_config()
    layers = causal.get_input_embeddings(), causal.get_output_embeddings()
    adapted = [layer for layer in layers if type(layer).__module__.startswith("peft.")]
    if adapted and (config.tie_word_embeddings or _weight(layers[0]) is _weight(layers[1])):
        place = "embeddings" if adapted[0] is layers[0] else "head"
        raise ValueError(
            f"adapters on the {place} need embeddings of their own, got a model whose head shares "
            "them (tie_word_embeddings): merged, its logits would be others than in training; take "
            "them out of target_modules and modules_to_save, or untie the model first"
        )


def check_collator(collator: object, model: nn.Module, reference: Reference | None) -> None:
    """Refuse packed batches for a student or a reference that looks across sequences."""
    if isinstance(collator, PackedCollator):
        check_packing(model)
        if isinstance(reference, FrozenModel):
            check_packing(reference.model)


def check_tokens(examples: Iterable[Any]) -> None:
    """Refuse examples without a token, of which no batch can be made.

    Raises:
        ValueError: there is one.
    """
    for example in examples:
        ids = example.get("input_ids") if isinstance(example, Mapping) else None
        if ids is not None and len(ids) == 0:
            raise ValueError(
                "an example must have at least one token, got none: leave it out of the data, as "
                "pact.data.dataset.encode_examples does"
            )


def check_anchors(objective: Objective, dataset: Any) -> None:
    """Refuse an objective that holds anchors alone where the data have none.

    A list and a `datasets.Dataset` are looked at; what makes its examples as it goes is not.

    Raises:
        ValueError: nothing would be held.
    """
    is_known = isinstance(dataset, Dataset | list | tuple)
    if holds_anchors_only(objective) and is_known and not anchors_of(dataset).any():
        raise ValueError(NO_ANCHORS)


def check_rows(num_rows: int) -> None:
    """Refuse a first step that has nothing to predict: nothing is labelled in such data.

    Args:
        num_rows: of the step, over all processes.

    Raises:
        ValueError: it has none.
    """
    if num_rows == 0:
        raise ValueError(
            "the examples of a step must have answer tokens to predict, got none in the first: "
            "every label is -100; encode the data with pact.data.dataset.encode_examples"
        )


def _weight(layer: Any) -> torch.Tensor | None:
    """The weight below whatever adapters wrap it."""
    for name in ("base_layer", "original_module"):
        layer = getattr(layer, name, layer)
    return getattr(layer, "weight", None)
