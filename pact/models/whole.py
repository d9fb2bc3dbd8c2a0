"""Models of which every weight comes from their files: a loader fills what is missing at random."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pact.models.files import check_model_files, loading

NAMED = 3
"""Weights of a kind that an error names, beside their number."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def read_model(auto: Any, path: str | Path, **options: Any) -> Any:
    """A model by its class's `from_pretrained`, refused if its files are not its weights.

    Tied weights, buffers that are not saved, and what the architecture itself says to ignore count
    as there. No code of the folder is run.

    Args:
        auto: AutoModelForCausalLM, or another class of transformers.
        path: a folder, or a hub name.
        options: of `from_pretrained`.

    Raises:
        ValueError: a file is damaged, or weights are missing, of another shape, or left over.
    """
    folder = Path(path)
    if folder.is_dir() and "gguf_file" not in options:
        check_model_files(folder)
    with loading(f"model {path}"), _without_report():
        model, info = auto.from_pretrained(
            str(path),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to be refused here, by name
            trust_remote_code=False,
            **options,
        )
    shapes = {
        f"{name} ({tuple(found)} for {tuple(wanted)})"
        for name, found, wanted in info["mismatched_keys"]
    }
    refuse_keys(
        f"the weights in {path}",
        f"of the {type(model).__name__} in its config.json",
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        mismatched=shapes,
    )
    return model


def read_adapters(model: nn.Module, folder: Path, config: Any) -> Any:
    """A PEFT model on its base, refused if the folder's weights are not its adapters'.

    Args:
        model: the base.
        folder: of the adapters.
        config: PEFT's, as the folder has it.

    Raises:
        ValueError: a file is missing or damaged, or weights are missing, of another shape, or left
            over.
    """
    from peft import PeftModel

    if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        raise ValueError(
            f"the folder of adapters {folder} must hold {ADAPTER_WEIGHTS[0]}, and does not: copy "
            "or download it again"
        )
    with loading(f"the adapters in {folder}"), _without_report():
        adapted = PeftModel.from_pretrained(model, str(folder), config=config)
        result = adapted.load_adapter(str(folder), adapted.active_adapter)  # for what it found
    if not config.is_prompt_learning:  # a learnt prompt is in no layer, where PEFT looks for names
        refuse_keys(
            f"the weights of the adapters in {folder}",
            "that its adapter_config.json puts on the base",
            missing=_unshared(adapted, result.missing_keys),
            unexpected=result.unexpected_keys,
        )
    return adapted


def _unshared(model: nn.Module, missing: Collection[str]) -> list[str]:
    """Missing names but for those of a weight that has another name, too, which is not missing."""
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(weight) for name, weight in named.items() if name not in set(missing)}
    return [name for name in missing if name not in named or id(named[name]) not in known]


def refuse_keys(
    what: str,
    wanted: str,
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Collection[str] = (),
) -> None:
    """Refuse names of weights that a file lacks, or has beyond what is wanted.

    Raises:
        ValueError: there are any.
    """
    kinds = (("missing", missing), ("of another shape", mismatched), ("beyond them", unexpected))
    faults = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]
    if faults:
        needed = missing or mismatched
        fix = "save or download all of it again" if needed else "save it again without those"
        raise ValueError(f"{what} must be all those {wanted}, got {', '.join(faults)}: {fix}")


@torch.no_grad()
def check_finite(model: nn.Module, what: str) -> None:
    """Refuse a model that has NaN or infinity among its weights; each is read once.

    Args:
        model: the model; weights that are quantised are left out.
        what: it and its place.

    Raises:
        ValueError: it has.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.itemsize < 2 or not weight.numel():
            continue
        if weight.is_meta:  # where it lies is another's matter
            continue
        if not bool(torch.stack(torch.aminmax(weight.detach())).isfinite().all()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"the weights of {what} must be finite, got NaN or infinity in {name} as {kind}: "
                "take a checkpoint from before it diverged, or a wider dtype if the file's values "
                "are beyond this one"
            )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")


@contextmanager
def _without_report() -> Iterator[None]:
    """Without the loaders' own tables of names, of which the error says the first."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            yield
    finally:
        logger.removeFilter(is_other)
