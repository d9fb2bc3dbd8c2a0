"""`pact plan`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.recipes.step import StepConfig, plan_text, sizes_of, step_plan

    if argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    (config,) = parse("plan", [StepConfig], argv)
    sizes = sizes_of(config.model)
    print(plan_text(config, sizes, step_plan(config, sizes)))
