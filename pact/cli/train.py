"""`pact train`."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    from pact.cli.arguments import parse
    from pact.objective import PactConfig
    from pact.training.config import TrainConfig

    config, pact = parse("train", [TrainConfig, PactConfig], argv)

    if config.dry_run:
        import sys

        from pact.training.dry_run import describe

        print(describe(config, pact, colour=sys.stdout.isatty()))
        return

    from pact.training.run import train

    result = train(config, pact)
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    if not result.records:
        print(f"nothing was left to do: saved in {result.output_dir}")
        return
    last = next(record for record in reversed(result.records) if "loss" in record)
    print(
        f"{last['step']:.0f} steps, cross-entropy {last['cross_entropy']:.4f}, "
        f"KL {last['kl']:z.4f}: saved in {result.output_dir}"
    )
