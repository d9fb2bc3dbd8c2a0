"""`pact discover`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.discovery import DiscoverConfig, run_discover

    (config,) = parse("discover", [DiscoverConfig], argv)
    tokens = run_discover(config)
    print(f"{tokens.ids.numel()} safety tokens in {config.output}: `pact show` lists them")
