"""`train`: from files to a trained model on disk; `fill`: its reference cache alone.

The output folder of a run:

    adapter_model.safetensors ...   the adapters or, for full fine-tuning, model.safetensors
    base/                           their base, if it was merged of a base and adapters itself
    tokenizer.json ...              so that the folder loads as a model of its own
    config.yaml                     every setting, which `pact train --config` reads
    metrics.jsonl, metrics.png
    README.md                       a model card: settings, and how far it moved from its reference
    checkpoints/step-<n>            the newest state, for --resume
"""

from __future__ import annotations

import copy
import logging
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset
from torch import nn

from pact.data.collate import Collator, pad_id
from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.folding import folding
from pact.data.forms import check_columns, renamed
from pact.data.mixing import with_refusals
from pact.data.packing import PackedCollator
from pact.data.sources import open_source
from pact.data.template import header_ids, prompt_text
from pact.data.tokenised import is_tokenised, tokenised_dataset
from pact.discovery import SafetyTokens
from pact.evaluation.prompts import load_prompts
from pact.loading import has_adapters, load_model, load_tokenizer
from pact.models import check_head, head_weight
from pact.objective import CrossEntropy, Objective, PactConfig, PactObjective
from pact.processes import join_processes, main_first
from pact.reference import (
    AdaptersOff,
    CachedReference,
    FrozenModel,
    Reference,
    ReferenceCache,
    cache_key,
    fill_cache,
)
from pact.training.card import write_card
from pact.training.config import CONFIG_FILE, OF_EVALUATIONS, TrainConfig, save_configs
from pact.training.evaluating import Evaluation
from pact.training.folder import check_output, held_folder
from pact.training.identity import (
    BY_CONTENT,
    check_settings,
    contents_of,
    evaluation_contents,
    identity_of,
)
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.optimizer import check_optimizer
from pact.training.saving import save_trained
from pact.training.schedule import Plan
from pact.training.student import make_trainable
from pact.training.trackers import check_trackers

logger = logging.getLogger(__name__)

CACHE_DIR = "~/.cache/pact/reference"


class TrainResult(NamedTuple):
    """A finished run."""

    model: Any
    """The trained model, in evaluation mode."""
    output_dir: Path
    """Where it was saved."""
    records: list[Record]
    """The metrics, see `pact.training.loop.fit`."""


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


def train(config: TrainConfig, pact: PactConfig | None = None) -> TrainResult:
    """Fine-tune a chat model on conversations and save it, with its settings and metrics.

    It runs in one process or in all that a launcher started. One run holds the output folder at a
    time.

    Args:
        config: what is trained, on what, and how.
        pact: the objective's settings; the default is `PactConfig()`.

    Raises:
        ValueError: the output folder is in use, is not empty and `resume` is off, or is one of the
            inputs; `resume` with other settings, data, tokens or models than the first run's; and
            whatever the data, the tokens, the model or the loop refuse.
    """
    pact = pact or PactConfig()
    processes = join_processes()
    output_dir = checked_output(config)
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(held_folder(output_dir, config.resume))
            if config.resume:
                check_settings(output_dir, (config, pact))

        main_first(processes, hold)
        return _train(config, pact, processes, output_dir)


def _train(
    config: TrainConfig, pact: PactConfig, processes: PartialState, output_dir: Path
) -> TrainResult:
    """The run in a folder that it holds."""
    given = loaded_inputs(config, pact)
    dataset, reference = given.dataset, given.reference
    is_live = isinstance(reference, AdaptersOff | FrozenModel)
    if is_live and _is_worth_caching(config, dataset):
        reference = _cached(config, given)
        dataset = dataset.add_column("example", np.arange(len(dataset)))
    if processes.is_main_process and not (output_dir / CONFIG_FILE).is_file():
        save_configs(output_dir, (replace(config, resume=False), pact))
    identity = identity_of((config, pact), given.contents, processes.num_processes)
    records = fit(
        given.model,
        dataset,
        given.objective,
        reference,
        step_collator(config, given.collator),
        config,
        output_dir=output_dir,
        identity=identity,
        evaluation=given.evaluation,
    )
    if processes.is_main_process:
        keep_base = has_adapters(config.model)
        save_trained(given.model, given.tokenizer, output_dir, keep_base=keep_base)
        write_card(output_dir, config, pact, records, given.contents)
        logger.info("saved the trained model to %s", output_dir)
    processes.wait_for_everyone()
    return TrainResult(given.model, output_dir, records)


def fill(config: TrainConfig, pact: PactConfig | None = None) -> ReferenceCache:
    """Fill the reference cache of a run ahead of it, on any number of processes.

    Args:
        config: the settings of the run; those of the loop, of evaluations and `output_dir` do not
            matter.
        pact: the objective's settings; the default is `PactConfig()`.

    Raises:
        ValueError: `method` is plain, or whatever the data, the tokens or the model refuse.
    """
    join_processes()
    if config.method == "plain":
        raise ValueError("method=plain has no reference to cache: give --method pact")
    unset: dict[str, Any] = dict.fromkeys(("eval_file", *OF_EVALUATIONS))
    given = loaded_inputs(replace(config, **unset), pact or PactConfig())
    assert isinstance(given.reference, AdaptersOff | FrozenModel)
    return _cached(config, given).cache


def checked_output(config: TrainConfig) -> Path:
    """The output folder, once all is looked at that needs no file: names, and what is where."""
    check_trackers(config)
    check_optimizer(config)
    output_dir = Path(config.output_dir).expanduser()
    check_output(output_dir, {name: getattr(config, name) for name in sorted(BY_CONTENT)})
    return output_dir


def step_collator(config: TrainConfig, collator: Collator) -> Collator:
    """What makes the batches of a step, of what makes padded ones."""
    if not config.packing:
        return collator
    return PackedCollator(**vars(collator), pack_length=config.pack_length or config.max_length)


def loaded_inputs(config: TrainConfig, pact: PactConfig) -> Inputs:
    """Everything that the settings name, the models last."""
    tokenizer = load_tokenizer(config.model, config.chat_template_kwargs)
    objective = _objective(config, pact, tokenizer)
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
    return replace(config, train_file=config.eval_file, split=split, refusals=None)


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
        return encode_examples(
            _conversations(config),
            tokenizer,
            config.max_length,
            skip_bad_rows=config.skip_bad_rows,
            fold_system=config.fold_system,
        )
    if config.refusals is not None:
        raise ValueError(
            f"refusals join conversations, got token ids in {config.train_file}: give the "
            "conversations that they were made of, or leave refusals unset"
        )
    return tokenised_dataset(
        chain([first], rows),
        source.name,
        len(tokenizer),
        config.max_length,
        skip_bad_rows=config.skip_bad_rows,
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


def _is_worth_caching(config: TrainConfig, dataset: Dataset) -> bool:
    """Whether the run sees an example more than once; else its reference is as cheap live."""
    plan = Plan(config, len(dataset))
    return config.cache and plan.num_steps * config.batch_size > len(dataset)


def _cached(
    config: TrainConfig,
    given: Inputs,
) -> CachedReference:
    """The live reference from disk; all processes fill in what is not there yet."""
    objective, reference = given.objective, given.reference
    assert isinstance(objective, PactObjective)  # nothing else needs a reference here
    assert isinstance(reference, AdaptersOff | FrozenModel)
    processes = PartialState()
    reference.model.to(processes.device)
    precision: dict[str, Any] = {"dtype": config.cache_dtype, "compute_dtype": config.dtype}
    header = given.collator.header_ids
    key = cache_key(given.dataset, reference, objective, header, **precision)
    parent = Path(config.cache_dir or CACHE_DIR).expanduser()
    cache = fill_cache(
        given.dataset,
        reference,
        objective,
        given.collator,
        folder=parent / key,
        process_index=processes.process_index,
        num_processes=processes.num_processes,
        progress=processes.is_local_main_process,
        **precision,
    )
    processes.wait_for_everyone()
    return CachedReference(cache, is_student=reference.is_student)


def _objective(config: TrainConfig, pact: PactConfig, tokenizer: Any) -> Objective:
    if config.method == "plain":
        return CrossEntropy()
    assert config.tokens is not None  # TrainConfig checks it
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
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
