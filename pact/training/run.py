"""`train`: from files to a trained model on disk; `fill`: its reference cache alone.

The output folder of a run:

    adapter_model.safetensors ...   the adapters or, for full fine-tuning, model.safetensors
    base/                           their base, if it was merged of a base and adapters itself
    tokenizer.json ...              so that the folder loads as a model of its own
    config.yaml                     every setting, which `pact train --config` reads
    metrics.jsonl, metrics.png
    trackers/                       what trackers write to the disk, where some were asked for
    README.md                       a model card: settings, and how far it moved from its reference
    checkpoints/step-<n>            the newest state, for --resume
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from pact.common.processes import all_together, join_processes, main_first
from pact.common.settings import user_path
from pact.data.collate import Collator
from pact.data.packing import PackedCollator
from pact.models.loading import has_adapters
from pact.objective import PactConfig, PactObjective
from pact.reference import (
    AdaptersOff,
    CachedReference,
    FrozenModel,
    ReferenceCache,
    cache_key,
    fill_cache,
)
from pact.reference.folder import check_cache_dir
from pact.training.card import write_card
from pact.training.config import CONFIG_FILE, OF_EVALUATIONS, TrainConfig, save_configs
from pact.training.folder import check_output, held_folder
from pact.training.identity import (
    BY_CONTENT,
    check_settings,
    identity_of,
    saved_config,
)
from pact.training.inputs import Inputs, loaded_inputs
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.optimizer import check_optimizer
from pact.training.saving import save_trained
from pact.training.schedule import Plan
from pact.training.trackers import check_trackers
from pact.training.writing import write_first

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

    def save_settings() -> None:
        if saved_config(output_dir) is None:
            save_configs(output_dir, (replace(config, resume=False), pact))

    write_first(CONFIG_FILE, output_dir, save_settings)
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

    def save() -> None:
        keep_base = has_adapters(config.model)
        save_trained(given.model, given.tokenizer, output_dir, keep_base=keep_base)
        write_card(output_dir, config, pact, records, given.contents)
        logger.info("saved the trained model to %s", output_dir)

    write_first("the trained model", output_dir, save)
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
    check_cache_dir(_cache_dir(config))
    given = loaded_inputs(replace(config, **unset), pact or PactConfig())
    assert isinstance(given.reference, AdaptersOff | FrozenModel)
    return _cached(config, given).cache


def checked_output(config: TrainConfig) -> Path:
    """The output folder, once all is looked at that needs no file: names, and what is where."""
    check_trackers(config)
    check_optimizer(config)
    output_dir = user_path(config.output_dir)
    taken = {name: getattr(config, name) for name in sorted(BY_CONTENT)}
    check_output(output_dir, taken | {"cache_dir": config.cache_dir})
    if config.cache and config.method == "pact":
        check_cache_dir(_cache_dir(config))
    return output_dir


def _cache_dir(config: TrainConfig) -> Path:
    return user_path(config.cache_dir or CACHE_DIR)


def step_collator(config: TrainConfig, collator: Collator) -> Collator:
    """What makes the batches of a step, of what makes padded ones."""
    if not config.packing:
        return collator
    return PackedCollator(**vars(collator), pack_length=config.pack_length or config.max_length)


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
    fill_own = partial(
        fill_cache,
        given.dataset,
        reference,
        objective,
        given.collator,
        folder=_cache_dir(config) / key,
        process_index=processes.process_index,
        num_processes=processes.num_processes,
        progress=processes.is_local_main_process,
        **precision,
    )
    cache = all_together(processes, fill_own)
    return CachedReference(cache, is_student=reference.is_student)
