"""`pact evaluate`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.evaluation import EvaluateConfig

    (config,) = parse("evaluate", [EvaluateConfig], argv)

    from pact.evaluation import run_evaluate
    from pact.evaluation.table import evaluation_table

    print(evaluation_table(run_evaluate(config)))
