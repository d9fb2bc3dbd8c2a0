"""`pact merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which adapters, and where the whole model goes."""

    adapters: str
    """A folder of adapters, such as `pact train` writes, which says what its base is."""
    output_dir: str
    """Folder for the whole model and its tokenizer; it must be new or empty."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What the weights are saved in; the sum is formed in fp32."""


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse

    (config,) = parse("merge", [MergeConfig], argv)

    from pact.training.merge import merge

    folder = merge(config.adapters, Path(config.output_dir), dtype=config.dtype)
    print(f"the whole model is saved in {folder}")
