"""Names on a hub: looked up once, and at once, before a loader tries for minutes."""

from __future__ import annotations

from typing import Literal

TIMEOUT_S = 10.0


def check_on_hub(name: str, kind: Literal["model", "dataset"], cached_file: str) -> None:
    """Ask the hub once whether it has this name, unless its files are in the local cache.

    Args:
        name: "name" or "owner/name".
        kind: what it is to be.
        cached_file: a file that the local cache has if the name was loaded before.

    Raises:
        ValueError: there is no such name, the hub cannot be asked, or it must not be.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, cached_file, repo_type=kind), str):
            return
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set, and the local cache has no files of it")
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        ask(name, timeout=TIMEOUT_S)
    except Exception as error:  # the hub's client raises errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{kind} {name!r} is neither a folder here nor found on the hub, which was asked once "
            f"({reason:.200}): check the name, or give the path of a folder"
        ) from error
