"""`pact show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Which tokens, and how."""

    tokens: str
    """Safety tokens, the file that `pact discover` writes."""
    tokenizer: str
    """The model they are of, for its tokenizer: a folder or a hub name."""
    plot: str | None = None
    """PNG file to draw the weights in, a new one; unset draws none."""


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse

    (config,) = parse("show", [ShowConfig], argv)

    from pact.common.outputs import check_new_file
    from pact.common.settings import user_path
    from pact.discovery import SafetyTokens
    from pact.discovery.show import plot_tokens, token_table
    from pact.models.loading import load_tokenizer

    if config.plot is not None:
        check_new_file(user_path(config.plot), "plot")
    tokens = SafetyTokens.load(config.tokens)
    tokenizer = load_tokenizer(config.tokenizer)
    print(token_table(tokens, tokenizer))
    if config.plot is not None:
        plot_tokens(tokens, tokenizer, config.plot)
