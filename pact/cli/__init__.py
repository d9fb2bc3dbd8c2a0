"""`pact <command>`: each command is one module here, imported when it is run.

tyro's own sub-commands need the settings of all of them, and with those torch, for any `--help`.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from pact import __version__
from pact.common.launched import check_joined
from pact.common.printable import PrintableFormatter, printable

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
    if arguments == ["--version"]:
        print(f"pact {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _failed("pact", unknown("command", name, COMMANDS))
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


def unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    """What to say of a name that is none of those that are known."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"they are {', '.join(known)}"
    return f"no {what} {name!r}: {hint}"


def listed(summaries: Mapping[str, str]) -> str:
    """Names and what they do, a line each."""
    width = max(map(len, summaries))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in summaries.items())


def _overview() -> str:
    return f"""usage: pact <command> [--help] [--config run.yaml] [flags]

Fine-tune a chat model while its confidence on a few safety tokens stays as it was.

{listed(COMMANDS)}

pact <command> --help lists its flags. A YAML file sets them by name; flags win. pact --version
is the package's."""
