"""`pact demo`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.demo import DemoConfig

    (config,) = parse("demo", [DemoConfig], argv)

    from pact.demo import run_demo

    run_demo(config)
