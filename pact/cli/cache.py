"""`pact cache`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.objective import PactConfig
    from pact.training.config import TrainConfig

    config, pact = parse("cache", [TrainConfig, PactConfig], argv)

    from pact.training.run import fill

    cache = fill(config, pact)
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(f"{cache.num_rows} rows of {cache.bytes_per_row} bytes: {cache.folder}")
