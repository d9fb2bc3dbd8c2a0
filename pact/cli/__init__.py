"""`pact <command>`: each command is one module here, imported when it is run."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from pact.launched import check_joined

COMMANDS = {
    "refusals": "keep the refusals that an aligned model gives: what discover reads",
    "discover": "find the safety tokens of an aligned model",
    "show": "print or draw a file of safety tokens",
    "cache": "compute the reference of a training run ahead of it",
    "train": "fine-tune a chat model and keep its alignment",
    "plan": "memory and time of a training step, for a model and a card",
    "merge": "put adapters into the model below them",
    "evaluate": "measure refusals, drift and what was learnt",
    "recipe": "settings for real models: memory plans, dry runs, data, whole runs",
    "demo": "all of it in minutes on a CPU, on a small model",
    "convert-tokens": "read the safety direction that the paper's authors released",
}
IN_SEVERAL_PROCESSES = ("cache", "train")
USER_ERROR = 2
INTERRUPTED = 130
CLOSED_PIPE = 141  # as a shell has it for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    It is 0, 2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM in training, 141
    where the output is no longer read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else USER_ERROR
    name, *rest = arguments
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"they are {', '.join(COMMANDS)}"
        print(f"pact: error: no command {name!r}: {hint}", file=sys.stderr)
        return USER_ERROR
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("pact").setLevel(logging.INFO)
    try:
        if name not in IN_SEVERAL_PROCESSES:
            check_joined(1)
        import_module(f"pact.cli.{name.replace('-', '_')}").run(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has read enough, as in `pact show ... | head`
        _close_stdout()
        return CLOSED_PIPE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pact"):
            raise
        return _failed(name, f"{error}: pip install 'pact-kernels[demo]'")
    except (ValueError, OSError) as error:
        return _failed(name, str(error))
    except KeyboardInterrupt as error:  # a training run says what it kept
        if str(error):
            print(f"pact {name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", INTERRUPTED)
    return 0


def _close_stdout() -> None:
    """Let the interpreter's last flush go nowhere, rather than fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(name: str, message: str) -> int:
    print(f"pact {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pact <command> [--help] [--config run.yaml] [flags]",
            "",
            "Fine-tune a chat model while its confidence on a few safety tokens stays as it was.",
            "",
            *commands,
            "",
            "pact <command> --help lists its flags. A YAML file sets them by name; flags win.",
        ]
    )
