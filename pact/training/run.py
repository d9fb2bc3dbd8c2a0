"""`train`: from files to a trained model on disk; `fill`: its reference cache alone.

The output folder of a run:

    adapter_model.safetensors ...   the adapters or, for full fine-tuning, model.safetensors
    tokenizer.json ...              so that the folder loads as a model of its own
    config.yaml                     every setting, which `pact train --config` reads
    metrics.jsonl, metrics.png
    checkpoints/step-<n>            the newest state, for --resume
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset

from pact.config import PactConfig
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation, load_examples
from pact.data.mixing import with_refusals
from pact.data.packing import PackedCollator
from pact.data.template import header_ids
from pact.discovery import SafetyTokens
from pact.loading import load_model, load_tokenizer
from pact.models import check_head, output_head
from pact.objective import PactObjective
from pact.reference import (
    AdaptersOff,
    CachedReference,
    FrozenModel,
    Reference,
    ReferenceCache,
    cache_key,
    fill_cache,
)
from pact.training.config import CONFIG_FILE, TrainConfig, config_changes, save_configs
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.schedule import Plan
from pact.training.student import make_trainable

logger = logging.getLogger(__name__)

# Settings that a resumed run may change: they do not touch what is computed.
FREE_ON_RESUME = {"resume", "save_every", "log_every", "output_dir", "cache_dir"}
CACHE_DIR = "~/.cache/pact/reference"


class TrainResult(NamedTuple):
    """A finished run."""

    model: Any
    """The trained model, in evaluation mode."""
    output_dir: Path
    """Where it was saved."""
    records: list[Record]
    """The metrics, see `pact.training.loop.fit`."""


def train(config: TrainConfig, pact: PactConfig | None = None) -> TrainResult:
    """Fine-tune a chat model on conversations and save it, with its settings and metrics.

    Args:
        config: what is trained, on what, and how.
        pact: the objective's settings; the default is `PactConfig()`.

    Raises:
        ValueError: the output folder is not empty and `resume` is off; `resume` with other settings
            than the first run's; and whatever the data, the tokens, the model or the loop refuse.
    """
    pact = pact or PactConfig()
    processes = PartialState()
    output_dir = _output_folder(config, pact)
    tokenizer = load_tokenizer(config.model)
    objective = _objective(config, pact, tokenizer)
    dataset = encode_examples(_conversations(config), tokenizer, config.max_length)
    model, reference = _load(config, objective, dataset)
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=objective.needs_post_only)
    if isinstance(reference, AdaptersOff | FrozenModel) and _is_worth_caching(config, dataset):
        reference = _cached(config, objective, dataset, reference, collator)
        dataset = dataset.add_column("example", np.arange(len(dataset)))
    if config.packing:
        collator = PackedCollator(
            **vars(collator), pack_length=config.pack_length or config.max_length
        )

    processes.wait_for_everyone()  # all have looked at the folder
    if processes.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        save_configs(output_dir, (replace(config, resume=False), pact))
    records = fit(model, dataset, objective, reference, collator, config, output_dir=output_dir)
    if processes.is_main_process:
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
        logger.info("saved the trained model to %s", output_dir)
    processes.wait_for_everyone()
    return TrainResult(model, output_dir, records)


def fill(config: TrainConfig, pact: PactConfig | None = None) -> ReferenceCache:
    """Fill the reference cache of a run ahead of it, on any number of processes.

    Args:
        config: the settings of the run; those of the loop and `output_dir` do not matter.
        pact: the objective's settings; the default is `PactConfig()`.

    Raises:
        ValueError: `method` is plain, or whatever the data, the tokens or the model refuse.
    """
    pact = pact or PactConfig()
    tokenizer = load_tokenizer(config.model)
    objective = _objective(config, pact, tokenizer)
    if not objective.needs_reference:
        raise ValueError("method=plain has no reference to cache: give --method pact")
    dataset = encode_examples(_conversations(config), tokenizer, config.max_length)
    _, reference = _load(config, objective, dataset)
    assert isinstance(reference, AdaptersOff | FrozenModel)
    header = header_ids(tokenizer) if objective.needs_post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=objective.needs_post_only)
    return _cached(config, objective, dataset, reference, collator).cache


def _conversations(config: TrainConfig) -> list[Conversation]:
    conversations = load_examples(config.train_file)
    if config.refusals is None:
        return conversations
    refusals = load_examples(config.refusals)
    return with_refusals(conversations, refusals, config.refusal_share, config.seed)


def _is_worth_caching(config: TrainConfig, dataset: Dataset) -> bool:
    """Whether the run sees an example more than once; else its reference is as cheap live."""
    plan = Plan(config, len(dataset))
    return config.cache and plan.num_steps * config.batch_size > len(dataset)


def _cached(
    config: TrainConfig,
    objective: PactObjective,
    dataset: Dataset,
    reference: AdaptersOff | FrozenModel,
    collator: Collator,
) -> CachedReference:
    """The reference from disk; all processes fill in what is not there yet."""
    processes = PartialState()
    reference.model.to(processes.device)
    precision: dict[str, Any] = {"dtype": config.cache_dtype, "compute_dtype": config.dtype}
    key = cache_key(dataset, reference, objective, collator.header_ids, **precision)
    parent = Path(config.cache_dir or CACHE_DIR).expanduser()
    cache = fill_cache(
        dataset,
        reference,
        objective,
        collator,
        folder=parent / key,
        process_index=processes.process_index,
        num_processes=processes.num_processes,
        progress=processes.is_local_main_process,
        **precision,
    )
    processes.wait_for_everyone()
    return CachedReference(cache, is_student=reference.is_student)


def _output_folder(config: TrainConfig, pact: PactConfig) -> Path:
    """Check the output folder before anything is loaded."""
    folder = Path(config.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {folder}")
    if not config.resume and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"output_dir must be empty, got {folder} with files in it: name another folder, or go "
            "on with its run by resume=True (--resume)"
        )
    changes = config_changes(folder, (config, pact)) if config.resume else {}
    for name, (saved, now) in changes.items():
        if name not in FREE_ON_RESUME:
            raise ValueError(
                f"a resumed run must keep its settings, got {name}={now!r} where "
                f"{folder / CONFIG_FILE} has {saved!r}: give that, or name another folder"
            )
    return folder


def _objective(config: TrainConfig, pact: PactConfig, tokenizer: Any) -> PactObjective:
    if config.method == "plain":
        return PactObjective.plain()
    assert config.tokens is not None  # TrainConfig checks it
    tokens = SafetyTokens.load(config.tokens)
    tokens.check_tokenizer(tokenizer)
    return PactObjective(tokens.ids, tokens.weights, pact)


def _load(
    config: TrainConfig, objective: PactObjective, dataset: Dataset
) -> tuple[Any, Reference | None]:
    """The model with what is to be trained in it, and the frozen model that it is held to."""
    # Only what is trained needs float32: under LoRA the model itself may be bfloat16.
    dtype = "fp32" if config.full_finetuning else config.dtype
    model = load_model(_absolute(config.model), dtype=dtype)
    check_head(model)
    vocabulary = output_head(model).weight.shape[0]
    largest = pc.max(pc.list_flatten(dataset.data.column("input_ids"))).as_py()
    if largest >= vocabulary:
        raise ValueError(
            f"every token id must be below the model's vocabulary of {vocabulary}, got {largest} "
            f"in {config.train_file}: {config.model} holds another model's tokenizer, or lacks "
            "embeddings for added tokens (resize_token_embeddings)"
        )
    reference: Reference | None = None
    if objective.needs_reference and config.reference_model is not None:
        reference = FrozenModel(load_model(config.reference_model, dtype=config.dtype))
    elif objective.needs_reference and config.full_finetuning:
        reference = FrozenModel(copy.deepcopy(model))  # rounds as the student does
    model = make_trainable(model, config)
    if objective.needs_reference and reference is None:
        reference = AdaptersOff(model)
    return model, reference


def _absolute(model: str) -> str:
    """A local folder's full path, which saved adapters keep as the name of their base."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
