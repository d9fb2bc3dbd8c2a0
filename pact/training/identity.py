"""What a run is of: its settings and the contents of all that it reads, kept in its checkpoints.

A resumed run must be the same one. Paths may change, what they lead to may not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from pact.common.settings import read_yaml
from pact.data.anchors import ANCHOR
from pact.objective import Objective, PactObjective
from pact.reference.columns import read_columns
from pact.reference.fingerprint import model_fingerprint
from pact.training.checkpoint import RUN_FILE, whole_checkpoint
from pact.training.config import CONFIG_FILE, resolved

FREE_ON_RESUME = {
    "resume",
    "save_every",
    "save_total_limit",
    "log_every",
    "report_to",
    "keep_best",
    "skip_bad_steps",
    "dry_run",
    "output_dir",
    "cache_dir",
}
"""Settings that do not touch what is computed."""
BY_CONTENT = {
    "model",
    "train_file",
    "eval_file",
    "probe_prompts",
    "tokens",
    "refusals",
    "anchors",
    "reference_model",
}
"""Settings that name files: what is in them is compared instead."""

Identity = dict[str, Any]

_PARTS = {"settings": dict, "contents": dict, "processes": int}


def contents_of(
    dataset: Any,
    objective: Objective,
    header_ids: Sequence[int],
    models: Mapping[str, nn.Module],
) -> dict[str, str]:
    """A digest of each thing that a run reads, by the name that errors give it.

    Args:
        dataset: the encoded examples, in order, refusals and anchors among them; so template and
            cut count.
        objective: its safety tokens and their weights.
        header_ids: the assistant header of post-only inputs.
        models: name -> the model as it was loaded, before it is trained.
    """
    contents = {"data": _digest(*read_columns(dataset))}
    if ANCHOR in getattr(dataset, "column_names", ()):
        contents["anchors"] = _digest(np.array(dataset[ANCHOR]))
    if isinstance(objective, PactObjective):
        tokens = objective.token_ids.numpy(), objective.token_weights.numpy()
        contents["safety tokens"] = _digest(*tokens)
    if objective.needs_post_only:
        contents["assistant header"] = str(list(header_ids))
    return contents | {name: model_fingerprint(model) for name, model in models.items()}


def evaluation_contents(dataset: Any, prompts: Sequence[Any]) -> dict[str, str]:
    """A digest of what a run is evaluated on, which decides its best weights and its end."""
    contents = {"evaluation data": _digest(*read_columns(dataset))}
    if prompts:
        text = json.dumps([list(prompt) for prompt in prompts], sort_keys=True)
        contents["probe prompts"] = xxhash.xxh3_128(text.encode()).hexdigest()
    return contents


def identity_of(
    configs: Sequence[Any], contents: Mapping[str, str], num_processes: int
) -> Identity:
    """What a checkpoint keeps of its run."""
    return {
        "settings": resolved(configs),
        "contents": dict(contents),
        "processes": num_processes,
    }


def check_settings(folder: Path, configs: Sequence[Any]) -> None:
    """Refuse to go on with other settings than those of the run in `folder`.

    They are those of its newest checkpoint, or before there is one, of its config.yaml. A setting
    that the saved ones lack had its default.

    Raises:
        ValueError: a setting differs; it names both values.
    """
    saved, where = _saved_settings(folder)
    if saved is None:
        return
    defaults = {f.name: f.default for config in configs for f in dataclasses.fields(config)}
    for name, now in resolved(configs).items():
        before = saved.get(name, defaults[name])
        if name not in FREE_ON_RESUME | BY_CONTENT and before != now:
            raise ValueError(
                f"a resumed run must keep its settings, got {name}={now!r} where {where} has "
                f"{before!r}: give that, or name another folder"
            )


def check_same_run(checkpoint: Path, now: Identity) -> None:
    """Refuse to go on from a checkpoint with other contents than it was made with.

    Raises:
        ValueError: something that the run reads differs; all of it is named.
    """
    saved = read_identity(checkpoint)
    if saved is None:
        return
    before, after = saved["contents"], now["contents"]
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    if changed:
        raise ValueError(
            "a resumed run must read what it read before, got another "
            f"{' and another '.join(changed)} than {checkpoint} was made with: give those of "
            "before, or name another folder"
        )
    if saved["processes"] != now["processes"] and now["settings"].get("lora_dropout"):
        raise ValueError(
            f"a resumed run with dropout must keep its number of processes, which draw it, got "
            f"{now['processes']} where {checkpoint} has {saved['processes']}: start as many"
        )


def read_identity(checkpoint: Path) -> Identity | None:
    """What a checkpoint says of its run; None where it was saved without.

    Raises:
        ValueError: it says nothing that can be read.
    """
    path = checkpoint / RUN_FILE
    if not path.is_file():
        return None
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(_no_identity(path, str(error))) from error
    if not isinstance(identity, dict) or not all(
        isinstance(identity.get(name), kind) for name, kind in _PARTS.items()
    ):
        raise ValueError(_no_identity(path, f"it must hold {', '.join(_PARTS)}"))
    return identity


def saved_config(folder: Path) -> Mapping[str, Any] | None:
    """What a run's config.yaml maps; None where it is missing or damaged."""
    try:
        saved = read_yaml((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) else None


def _saved_settings(folder: Path) -> tuple[Mapping[str, Any] | None, Path]:
    """The settings of the run in a folder, and the file that has them."""
    checkpoint = whole_checkpoint(folder, only=(RUN_FILE,))
    identity = None if checkpoint is None else read_identity(checkpoint)
    if checkpoint is not None and identity is not None:
        return identity["settings"], checkpoint / RUN_FILE
    return saved_config(folder), folder / CONFIG_FILE


def _no_identity(path: Path, reason: str) -> str:
    return (
        f"{path} must say what its run is of, and does not ({reason}): delete its checkpoint to go "
        "on from the one before, or name another folder"
    )


def _digest(*arrays: Any) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(torch.as_tensor(array).contiguous().numpy().data)
    return digest.hexdigest()
