"""`pact convert-tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """From the released file to one of safety tokens."""

    input: str
    """The .pt file that the paper's authors released."""
    output: str
    """The file of safety tokens to write."""
    overwrite: bool = False
    """Replace the output if it is there."""


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse

    (config,) = parse("convert-tokens", [ConvertConfig], argv)

    from pact.discovery.released import convert_released

    tokens = convert_released(config.input, config.output, overwrite=config.overwrite)
    print(f"{tokens.ids.numel()} safety tokens in {config.output}")
