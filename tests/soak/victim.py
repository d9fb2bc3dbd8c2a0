"""A training run to kill: its files, the processes that it runs in, and what it left behind."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import yaml

PRELOADED = [
    "pact.training.run",
    "pact.cli.train",
    "pact.training.trackers",
    "pact_kernels.chunked",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
]
"""What every process would import: done once, in the server that forks them."""
SHARD_EXAMPLES = 32
"""Examples in a shard of the reference cache: three of them in `Settings()`."""
GRACE_S = 60.0
"""How long a process may outlive one that it trained with, as a launcher has it."""
CHANGES = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
}
"""Audit events of calls that change files; of `open`, those for writing."""


class Settings(NamedTuple):
    """How long a run is."""

    examples: int = 72
    steps: int = 10
    batch_size: int = 8
    """More examples in all than there are, so that the run fills a cache."""
    save_every: int = 2
    log_every: int = 1


class Moment(NamedTuple):
    """When a signal ends a process of a run: whichever comes first."""

    after_s: float | None = None
    change: int | None = None
    """SIGKILL comes before this change of a file, from 1."""
    number: int = signal.SIGKILL
    rank: int = 0


NEVER = Moment()


def prepare(folder: Path, settings: Settings) -> None:
    """Write a tiny model, its tokens, data and run.yaml into a folder."""
    from pact.discovery import SafetyTokens
    from tests.tiny import save_tiny, tiny_tokenizer

    save_tiny(folder / "model")
    for name, count in (("train", settings.examples), ("eval", 8)):
        rows = [json.dumps(_row(number)) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    ids = torch.tensor(tiny_tokenizer()("I cannot").input_ids).unique()
    SafetyTokens(ids, torch.ones(len(ids))).save(folder / "tokens.safetensors")
    config = {
        "model": str(folder / "model"),
        "train_file": str(folder / "train.jsonl"),
        "eval_file": str(folder / "eval.jsonl"),
        "tokens": str(folder / "tokens.safetensors"),
        "lora_dropout": 0.1,
        "learning_rate": 1e-2,
        "max_steps": settings.steps,
        "batch_size": settings.batch_size,
        "save_every": settings.save_every,
        "eval_every": 2 * settings.save_every,
        "log_every": settings.log_every,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def _row(number: int) -> dict[str, Any]:
    answer = "I cannot. " + f"Number {number} is it. " * (1 + number % 2)
    turns = [("user", f"question {number}"), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


class Victim:
    """The run of a prepared folder, begun or gone on with in processes of its own.

    Args:
        folder: see `prepare`.
        output: the run's folder; the cache is beside it.
        end: of one of its processes.
        processes: how many train together.
        log: where they write what they say, with temporary files beside it; None: beside `output`.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        end: Moment = NEVER,
        processes: int = 1,
        log: Path | None = None,
    ) -> None:
        argv = ["train", "--config", str(folder / "run.yaml"), "--output-dir", str(output)]
        argv += ["--cache-dir", str(cache_of(output))] + (["--resume"] if output.exists() else [])
        self.log = log or output.with_suffix(".log")
        self.log.with_name("temporary").mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self.end = end
        context = server()
        self._changes = context.Value("i", 0, lock=False)
        self._begun = context.Event()
        self.processes: list[Any] = []
        self.others: list[int | None] = []  # exit codes of those that `end` is not about
        for rank, own in enumerate(launched(processes) if processes > 1 else [{}]):
            die_at = end.change if rank == end.rank else None
            begun = self._begun if rank == end.rank else None
            process = context.Process(
                target=_run,
                args=(argv, self.log, own, die_at, self._changes, begun),
                daemon=True,
            )
            process.start()
            self.processes.append(process)

    @property
    def changes(self) -> int:
        """Calls so far that changed a file, of the process that `end` is about."""
        return self._changes.value

    def memory(self) -> int:
        """Bytes that all processes hold now."""
        total = 0
        for process in self.processes:
            try:
                total += psutil.Process(process.pid).memory_info().rss
            except psutil.NoSuchProcess:
                pass
        return total

    def ended(self) -> int:
        """Wait for the end, or bring it about at its moment; returns the exit code.

        Of several processes it is that of the one that `end` is about; the others follow by
        themselves, or after GRACE_S as a launcher ends them.
        """
        first = self.processes[self.end.rank]
        first.join(self.end.after_s)
        if self.end.number != signal.SIGKILL:  # until then multiprocessing would take the signal
            while first.is_alive() and not self._begun.wait(1.0):
                pass
        if first.is_alive():
            assert first.pid is not None
            os.kill(first.pid, self.end.number)
        first.join()
        for process in self.processes:
            process.join(GRACE_S)
            if process is not first:
                self.others.append(process.exitcode)  # None: it is ended here
            process.kill()
            process.join()
        assert first.exitcode is not None
        return first.exitcode


def start_server() -> None:
    """Start what forks the processes, and wait until it has imported what they need."""
    process = server().Process(target=int)
    process.start()
    process.join()


def server() -> ForkServerContext:
    """Where processes are forked that have imported PRELOADED."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def launched(processes: int) -> list[dict[str, str]]:
    """The environment that a launcher gives to each of several processes."""
    launch = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    launch |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(_free_port())}
    return [launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def cache_of(output: Path) -> Path:
    return output.with_name("cache")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(
    argv: list[str],
    log: Path,
    launch: dict[str, str],
    die_at: int | None,
    changes: Any,
    begun: Any,
) -> None:
    from pact.cli import main
    from pact.reference import shards

    shards.SHARD_EXAMPLES = SHARD_EXAMPLES
    os.environ.update(launch, TMPDIR=str(log.with_name("temporary")))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if launch.get("RANK", "0") == "0" or die_at is not None:
        sys.addaudithook(_Hook(str(log.parent), changes, die_at))
    try:
        if begun is not None:
            begun.set()
        code = main(argv)
    except KeyboardInterrupt:  # before `main` could take it; multiprocessing would make a 1 of it
        code = 128 + signal.SIGINT
    sys.exit(code)


class _Hook:
    """An audit hook that counts changes of files below `folder`, and dies before one of them."""

    def __init__(self, folder: str, changes: Any, die_at: int | None) -> None:
        self.folder = folder
        self.changes = changes
        self.die_at = die_at

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.changes.value += 1
        if self.changes.value == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def left_behind(output: Path) -> dict[str, str]:
    """What a run wrote into its folder, its cache and the place of temporary files, by path.

    Values are digests, or only that it is there where times of day are in it.
    """
    found = {}
    for root in (output, cache_of(output), output.with_name("temporary")):
        for path in sorted(root.rglob("*")):
            name = f"{root.name}/{path.relative_to(root)}"
            found[name] = _content(path) if path.is_file() else "a folder"
    return found


def _plain(value: Any) -> Any:
    """A state with the bytes of its tensors."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _content(path: Path) -> str:
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([{**record, "tokens_per_s": 0} for record in records])
    if path.name == "config.yaml":
        settings = yaml.safe_load(path.read_text())
        return json.dumps(settings | dict.fromkeys(("output_dir", "cache_dir"), "elsewhere"))
    if path.name == "state.pt":
        state = torch.load(path, weights_only=True)
        return hashlib.sha256(repr(_plain(state)).encode()).hexdigest()
    if path.suffix in (".safetensors", ".arrow"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "a file"
