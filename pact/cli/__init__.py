"""`pact <command>`: each command is one module here, imported when it is run."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from pact.launched import check_joined
from pact.printable import PrintableFormatter, printable

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
LIBRARIES_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
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
        return _failed("pact", f"no command {name!r}: {hint}")
    try:
        _prepare_output()
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
        return _failed(f"pact {name}", f"{error}: pip install 'pact-kernels[demo]'")
    except (ValueError, OSError) as error:
        return _failed(f"pact {name}", str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        return _failed(f"pact {name}", _out_of_memory(str(error)))
    except KeyboardInterrupt as error:  # a training run says what it kept
        if str(error):
            print(f"pact {name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", INTERRUPTED)
    return 0


def _prepare_output() -> None:
    """Let nothing of what files hold steer the terminal, and keep what is of no help off it."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pact").setLevel(logging.INFO)
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):  # a result is printed whatever the terminal's letters are
        stdout.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:  # what libraries ask of each other
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    if not sys.stderr.isatty():  # where a bar is a heap of lines
        for name in LIBRARIES_BARS:
            os.environ.setdefault(name, "1")


def _close_stdout() -> None:
    """Let the interpreter's last flush go nowhere, rather than fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by the words that torch has for it on a processor and on a card."""
    words = str(error)
    return isinstance(error, MemoryError) or "out of memory" in words or "allocate memory" in words


def _out_of_memory(words: str) -> str:
    remedy = "lower the sizes of batches, of lengths or of the adapters, or give a smaller dtype"
    return f"there is not enough memory: {remedy}{words and f' ({words})'}"


def _failed(prog: str, message: str) -> int:
    """Say in one line what was wrong."""
    print(f"{prog}: error: {printable(' '.join(message.split()))}", file=sys.stderr)
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
