"""One target under atheris: `python -m tests.fuzz.worker target folder [options of libFuzzer]`."""

from __future__ import annotations

import logging
import random
import shutil
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pact", "json", "csv", "yaml"]):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.mutations import mutated

OWN = 0.5
"""How often a change is one of `tests.fuzz.mutations`, and not of libFuzzer's."""


def main(argv: list[str]) -> None:
    program, name, place, *options = argv
    folder = Path(place)
    read = TARGETS[name].read
    logging.disable(logging.CRITICAL)

    def one_input(data: bytes) -> None:
        try:
            read(data, folder)
        except ValueError:
            pass
        finally:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def change(data: bytes, most: int, seed: int) -> bytes:
        stream = random.Random(seed)
        if stream.random() < OWN:
            return mutated(data, stream)[:most]
        return atheris.Mutate(data, most)

    atheris.Setup([program, *options], one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
