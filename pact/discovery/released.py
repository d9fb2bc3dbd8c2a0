"""Read the direction that the paper's authors released, and write it as safety tokens.

Legend: V vocabulary, K safety tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pact.common.outputs import check_new_file
from pact.common.settings import user_path
from pact.discovery.tokens import SafetyTokens

KEYS = ("v_dir", "direction", "safety_direction", "vector", "weights")


def convert_released(
    path_pt: str | Path, out: str | Path, *, overwrite: bool = False
) -> SafetyTokens:
    """Convert a released `.pt` file: its non-zero entries become the ids and weights.

    Args:
        path_pt: a (V,) tensor saved with `torch.save`, or a dict that holds it under one of `KEYS`.
        out: the file to write, for `SafetyTokens.load`.
        overwrite: replace it if it is there.

    Returns:
        The tokens, as written. No tokenizer is named, so `check_tokenizer` compares ids alone.

    Raises:
        ValueError: the output is there; the file is missing, is no such file, or its vector is zero
            everywhere or not finite.
    """
    path = user_path(path_pt)
    check_new_file(user_path(out), overwrite=overwrite, inputs={"input": path})
    if not path.is_file():
        raise ValueError(f"released file {path} does not exist: give the .pt file of the authors")
    vector = _vector(_load(path), path)  # (V,)
    ids = vector.nonzero().flatten()  # (K,)
    if ids.numel() == 0:
        raise ValueError(
            f"the vector in {path} must have a non-zero entry, got {vector.numel()} zeros"
        )
    metadata = {
        "aligned": f"the released file {path.name}",
        "vocab_size": str(vector.numel()),
        "top_k": str(ids.numel()),
    }
    tokens = SafetyTokens(ids, vector[ids].float(), metadata=metadata)
    tokens.save(out)
    return tokens


def _load(path: Path) -> Any:
    """The file's content; tensors and plain containers alone, so that no code in it runs."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can end in an error of any kind
        raise ValueError(
            f"{path} must be a tensor or a dict of tensors saved by torch.save, got a file that "
            f"torch.load(weights_only=True) refuses ({type(error).__name__})"
        ) from error


def _vector(content: Any, path: Path) -> Tensor:
    """The (V,) vector, by itself or under a known key."""
    if isinstance(content, Tensor):
        found = [content]
    elif isinstance(content, dict):
        found = [content[key] for key in KEYS if isinstance(content.get(key), Tensor)]
    else:
        found = []
    if len(found) != 1:
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} must hold one tensor, or one under the keys {KEYS}, got {keys}: save the "
            "vector alone with torch.save"
        )
    vector = found[0].squeeze()
    if vector.dim() != 1 or not vector.is_floating_point():
        raise ValueError(
            f"the vector in {path} must be (V,) floats, got {tuple(found[0].shape)} "
            f"{found[0].dtype}: give the file of the safety direction v_dir"
        )
    return vector
