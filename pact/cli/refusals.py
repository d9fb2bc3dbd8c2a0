"""`pact refusals`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.evaluation.refusals import RefusalsConfig, write_refusals

    (config,) = parse("refusals", [RefusalsConfig], argv)
    written, asked = write_refusals(config)
    if config.keep == "all":
        print(
            f"{written} answers in {config.output}: `pact train --anchors` holds the model to them"
        )
    else:
        print(
            f"{written} refusals of {asked} prompts in {config.output}: `pact discover` reads them"
        )
