"""`pact demo`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.demo import DemoConfig, run_demo

    (config,) = parse("demo", [DemoConfig], argv)
    run_demo(config)
