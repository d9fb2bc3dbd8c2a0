"""What lies in a model's folder, looked at before a loader stumbles over it.

A loader meets damage with an error of any kind, or fills what is missing in silence; here it is one
ValueError that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, the first that is there."""
OF_MODELS = (CONFIG, "generation_config.json")
OF_TOKENIZERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
LONGEST_REASON = 400
"""Characters kept of a loader's own words."""


def check_model_files(folder: Path) -> None:
    """Refuse a folder of weights whose files cannot be read, or name files that are not there.

    Raises:
        ValueError: there is no config.json; a JSON file is no object; the index of the weights
            names a file that is missing or outside the folder; or the head of a file of weights is
            damaged.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"model folder {folder} must hold {CONFIG}, and does not: give the folder that "
            "save_pretrained wrote, or copy the file there"
        )
    check_json(folder, OF_MODELS)
    used = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if used is None:
        return  # another name, which the loader knows or not
    for path in _named_by(used) if used.suffix == ".json" else [used]:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} must be a whole safetensors file, and cannot be read ({error}): copy or "
                "download it again"
            ) from error


def check_json(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse files of a folder that are there and are no JSON objects.

    Raises:
        ValueError: one of them is not.
    """
    for name in names:
        if (folder / name).is_file():
            read_object(folder / name)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else, or cannot be read as JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise _no_object(path, "values nested too deeply") from error
    except ValueError as error:  # of JSON, or of the letters
        raise _no_object(path, f"what is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _no_object(path, f"a {type(value).__name__}")
    return value


def _no_object(path: Path, got: str) -> ValueError:
    return ValueError(f"{path} must hold a JSON object, got {got}: copy or download it again")


def _named_by(index: Path) -> list[Path]:
    """The files that an index of weights names, all in its folder."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ValueError(
            f"{index} must map weights to files in weight_map, and does not: copy or download it "
            "again"
        )
    paths = []
    for name in sorted(set(places.values())):
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(
                f"{index} must name files of its folder, got {name!r}: download the model again"
            )
        paths.append(index.parent / inner)
        if not paths[-1].is_file():
            raise ValueError(
                f"{index} names {name}, which is not there: copy or download that file, too"
            )
    return paths


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever a loader raises into one ValueError that says what was loaded.

    Args:
        what: the thing and its place, such as "the tokenizer in runs/first".

    Raises:
        ValueError: the loader failed.
    """
    fix = "if its files are damaged or of another kind, copy or download them again"
    try:
        yield
    except Exception as error:  # damaged files end in an error of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, RecursionError):
            reason = "values are nested too deeply"
        elif isinstance(error, UnpicklingError):
            reason = "it is no pickle, or one that holds more than tensors, which is not read"
        elif isinstance(error, ImportError):
            fix = "install what is missing"
        elif "trust_remote_code" in reason:
            reason, fix = "it needs code of its own", "that is not run; give a model without"
        if len(reason) > LONGEST_REASON:
            reason = reason[:LONGEST_REASON] + " ..."
        raise ValueError(f"{what} cannot be loaded ({reason}): {fix}") from error
