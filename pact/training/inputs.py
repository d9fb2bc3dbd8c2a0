"""What a run works with: the tokens, the data and the models that its settings name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

from pact.common.settings import user_path
from pact.data.anchors import with_anchors
from pact.data.collate import Collator, pad_id
from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.folding import folding
from pact.data.forms import check_columns, renamed
from pact.data.mixing import with_refusals
from pact.data.sources import open_source
from pact.data.template import header_ids, prompt_text
from pact.data.tokenised import is_tokenised, tokenised_dataset
from pact.discovery import SafetyTokens
from pact.evaluation.prompts import load_prompts
from pact.models import check_head, head_weight
from pact.models.loading import find_model, load_model, load_tokenizer
from pact.objective import CrossEntropy, Objective, PactConfig, PactObjective
from pact.reference import (
    AdaptersOff,
    FrozenModel,
    Reference,
)
from pact.training.checks import NO_ANCHORS
from pact.training.config import TrainConfig
from pact.training.evaluating import Evaluation
from pact.training.identity import (
    contents_of,
    evaluation_contents,
)
from pact.training.student import make_trainable


class Inputs(NamedTuple):
    """What a run, or the filling of its cache, works with."""

    tokenizer: Any
    objective: Objective
    dataset: Dataset
    collator: Collator
    model: Any
    reference: Reference | None
    contents: dict[str, str]
    evaluation: Evaluation | None


def loaded_inputs(config: TrainConfig, pact: PactConfig) -> Inputs:
    """Everything that the settings name, the models last."""
    tokenizer = load_tokenizer(config.model, config.chat_template_kwargs)
    objective = _objective(config, pact, tokenizer)
    if objective.needs_reference and config.reference_model is not None:
        find_model(config.reference_model)  # before the model is loaded
    dataset = _dataset(config, tokenizer)
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    collator = Collator(header, pad_id(tokenizer), post_only=objective.needs_post_only)
    others = None if config.eval_file is None else _dataset(_evaluated(config), tokenizer)
    prompts = _probe_prompts(config, tokenizer)
    model, reference, loaded = _load_models(config, objective)
    _check_vocabulary(config, model, dataset)
    contents = contents_of(dataset, objective, header, loaded)
    model, reference = _with_reference(config, objective, model, reference)
    evaluation = None
    if others is not None:
        _check_vocabulary(_evaluated(config), model, others)
        contents |= evaluation_contents(others, prompts)
        evaluation = Evaluation(
            others, objective, reference, collator, prompts=prompts, tokenizer=tokenizer
        )
    return Inputs(tokenizer, objective, dataset, collator, model, reference, contents, evaluation)


def _evaluated(config: TrainConfig) -> TrainConfig:
    """The settings by which the examples of the evaluations are read."""
    assert config.eval_file is not None
    split = config.eval_split or config.split
    return replace(config, train_file=config.eval_file, split=split, refusals=None, anchors=None)


def _probe_prompts(config: TrainConfig, tokenizer: Any) -> list[Conversation]:
    """Requests to refuse, which the chat template has room for."""
    if config.probe_prompts is None:
        return []
    fold = folding(tokenizer, config.fold_system)
    read = load_prompts(config.probe_prompts, skip_bad_rows=config.skip_bad_rows)
    prompts = [fold(prompt) for prompt in read]
    for prompt in prompts:
        prompt_text(prompt, tokenizer)
    return prompts


def _dataset(config: TrainConfig, tokenizer: Any) -> Dataset:
    """The examples: token ids as they are, or conversations by the chat template."""
    check_columns(config.columns)
    source = open_source(config.train_file, config.split, config.subset)
    rows = ((row.where, renamed(row.value, config.columns, row.where)) for row in source.rows)
    first = next(rows, None)
    if first is None or not is_tokenised(first[1]):
        return _with_anchors(_encoded(_conversations(config), config, tokenizer), config, tokenizer)
    if config.refusals is not None:
        raise ValueError(
            f"refusals join conversations, got token ids in {config.train_file}: give the "
            "conversations that they were made of, or leave refusals unset"
        )
    dataset = tokenised_dataset(
        chain([first], rows),
        source.name,
        len(tokenizer),
        config.max_length,
        skip_bad_rows=config.skip_bad_rows,
    )
    return _with_anchors(dataset, config, tokenizer)


def _with_anchors(dataset: Dataset, config: TrainConfig, tokenizer: Any) -> Dataset:
    if config.anchors is None:
        return dataset
    own_words = load_examples(
        config.anchors, split=config.split, skip_bad_rows=config.skip_bad_rows
    )
    anchors = _encoded(own_words, config, tokenizer)
    return with_anchors(dataset, anchors, config.anchor_share, config.anchor_steps, config.seed)


def _encoded(conversations: Sequence[Conversation], config: TrainConfig, tokenizer: Any) -> Dataset:
    return encode_examples(
        conversations,
        tokenizer,
        config.max_length,
        skip_bad_rows=config.skip_bad_rows,
        fold_system=config.fold_system,
    )


def _conversations(config: TrainConfig) -> list[Conversation]:
    conversations = load_examples(
        config.train_file,
        split=config.split,
        subset=config.subset,
        columns=config.columns,
        skip_bad_rows=config.skip_bad_rows,
    )
    if config.refusals is None:
        return conversations
    refusals = load_examples(
        config.refusals, split=config.split, skip_bad_rows=config.skip_bad_rows
    )
    return with_refusals(conversations, refusals, config.refusal_share, config.seed)


def _objective(config: TrainConfig, pact: PactConfig, tokenizer: Any) -> Objective:
    if config.method == "plain":
        return CrossEntropy()
    assert config.tokens is not None  # TrainConfig checks it
    if pact.anchors_only and config.anchors is None:
        raise ValueError(NO_ANCHORS)
    tokens = SafetyTokens.load(config.tokens)
    tokens.check_tokenizer(tokenizer)
    return PactObjective(tokens.ids, tokens.weights, pact)


def _load_models(
    config: TrainConfig, objective: Objective
) -> tuple[Any, Reference | None, dict[str, nn.Module]]:
    """The model before anything is trained in it, a reference of its own, and both by name."""
    # Only what is trained needs float32: under LoRA the model itself may be bfloat16.
    dtype = "fp32" if config.full_finetuning else config.dtype
    model = load_model(
        _absolute(config.model), dtype=dtype, merge_adapters=True, quantize=config.quantize
    )
    check_head(model)
    if not objective.needs_reference or config.reference_model is None:
        return model, None, {"model": model}
    other = load_model(config.reference_model, dtype=config.dtype, merge_adapters=True)
    return model, FrozenModel(other), {"model": model, "reference": other}


def _check_vocabulary(config: TrainConfig, model: Any, dataset: Dataset) -> None:
    """Refuse token ids that the model has no embedding or no logit for."""
    vocabulary = head_weight(model).shape[0]
    largest = pc.max(pc.list_flatten(dataset.data.column("input_ids"))).as_py()
    if largest >= vocabulary:
        raise ValueError(
            f"every token id must be below the model's vocabulary of {vocabulary}, got {largest} "
            f"in {config.train_file}: {config.model} holds another model's tokenizer, or lacks "
            "embeddings for added tokens (resize_token_embeddings)"
        )


def _with_reference(
    config: TrainConfig, objective: Objective, model: Any, reference: Reference | None
) -> tuple[Any, Reference | None]:
    """The model with what is to be trained in it, and the frozen model that it is held to."""
    is_own = objective.needs_reference and reference is None
    if is_own and config.full_finetuning:
        reference = FrozenModel(copy.deepcopy(model))  # rounds as the student does
    model = make_trainable(model, config)
    if is_own and not config.full_finetuning:
        reference = AdaptersOff(model)
    return model, reference


def _absolute(model: str) -> str:
    """A local folder's full path, which saved adapters keep as the name of their base."""
    folder = user_path(model)
    return str(folder.resolve()) if folder.is_dir() else model
