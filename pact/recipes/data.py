"""Public prompts and tasks, fetched through `datasets` and written as the commands read them.

Nothing of them is in this package: `SOURCES` says where each is, and who fetches it accepts its
licence. Prompt sets become lines with `prompt`; tasks become conversations, `prompt` and
`completion`, in the words that lm-eval asks with, so that what is trained is what it measures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.request import urlopen

from datasets import load_dataset

from pact.common.outputs import check_new_file, whole_file
from pact.common.settings import short, user_path
from pact.data.jsonl import parse_line, read_lines
from pact.data.sources import FILES, open_source

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_S = 60
SENTIMENTS = ("negative", "positive")


class Source(NamedTuple):
    """Where a set is, and which of its rows and columns are wanted."""

    title: str
    place: str  # a hub name, or the address of a file
    licence: str
    prompt: Callable[[Mapping[str, Any]], str]
    completion: Callable[[Mapping[str, Any]], str] | None = None
    subset: str | None = None
    split: str = "train"
    keep: tuple[str, str] | None = None  # column and the value that it must have


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, got {short(value)}")
    return value


def _column(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _text(row, name)


def _sst2_prompt(row: Mapping[str, Any]) -> str:
    sentence = _text(row, "sentence").strip()
    return f"{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"


def _sst2_sentiment(row: Mapping[str, Any]) -> str:
    label = str(row["label"])  # a CSV file has texts
    if label not in ("0", "1"):
        raise ValueError(f"'label' must be 0 or 1, got {short(row['label'])}")
    return SENTIMENTS[int(label)]


def _gsm8k(title: str, split: str) -> Source:
    return Source(
        title,
        "openai/gsm8k",
        "MIT",
        prompt=lambda row: f"Question: {_text(row, 'question')}\nAnswer:",
        completion=_column("answer"),
        subset="main",
        split=split,
    )


def _sst2(title: str, split: str) -> Source:
    return Source(
        title,
        "stanfordnlp/sst2",
        "not stated",
        prompt=_sst2_prompt,
        completion=_sst2_sentiment,
        split=split,
    )


SOURCES: dict[str, Source] = {
    "advbench": Source(
        "AdvBench harmful behaviours: discovery asks them",
        f"{GITHUB}/llm-attacks/llm-attacks/main/data/advbench/harmful_behaviors.csv",
        "MIT",
        prompt=_column("goal"),
    ),
    "harmbench": Source(
        "HarmBench standard behaviours",
        f"{GITHUB}/centerforaisafety/HarmBench/main/data/behavior_datasets/"
        "harmbench_behaviors_text_all.csv",
        "MIT",
        prompt=_column("Behavior"),
        keep=("FunctionalCategory", "standard"),
    ),
    "strongreject": Source(
        "StrongREJECT forbidden prompts",
        f"{GITHUB}/alexandrasouly/strongreject/main/strongreject_dataset/strongreject_dataset.csv",
        "MIT",
        prompt=_column("forbidden_prompt"),
    ),
    "jailbreakbench": Source(
        "JailbreakBench harmful behaviours",
        "JailbreakBench/JBB-Behaviors",
        "MIT",
        prompt=_column("Goal"),
        subset="behaviors",
        split="harmful",
    ),
    "jailbreakbench-benign": Source(
        "JailbreakBench benign behaviours: over-refusal",
        "JailbreakBench/JBB-Behaviors",
        "MIT",
        prompt=_column("Goal"),
        subset="behaviors",
        split="benign",
    ),
    "xstest": Source(
        "XSTest safe prompts: over-refusal",
        f"{GITHUB}/paul-rottger/xstest/main/xstest_prompts.csv",
        "CC-BY-4.0",
        prompt=_column("prompt"),
        keep=("label", "safe"),
    ),
    "gsm8k": _gsm8k("GSM8K, training part", "train"),
    "gsm8k-test": _gsm8k("GSM8K, test part", "test"),
    "sst2": _sst2("SST-2, training part", "train"),
    "sst2-validation": _sst2("SST-2, validation part", "validation"),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which set, and where it goes."""

    name: str
    """The set, which may stand first without the flag."""
    output: str
    """The .jsonl file to write."""
    overwrite: bool = False
    """Replace the output if it is there."""
    without: tuple[str, ...] = ()
    """Files written before, whose prompts are left out word for word."""
    source_file: str | None = None
    """A copy of the set's file to read instead of fetching it: .csv, .json, .jsonl or .parquet."""

    def __post_init__(self) -> None:
        if self.name not in SOURCES:
            raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {self.name!r}")
        if Path(self.output).suffix != ".jsonl":
            raise ValueError(f"output must be a .jsonl file, got {self.output!r}")
        if self.source_file is not None and Path(self.source_file).suffix not in FILES:
            raise ValueError(
                f"source_file must end in one of {', '.join(FILES)}, got {self.source_file!r}"
            )


def write_data(config: DataConfig) -> int:
    """Fetch a set and write it, one object a line, in the order of its source.

    Returns:
        The lines written.

    Raises:
        ValueError: the output exists or cannot be written; the set cannot be fetched, with the
            cause and the remedy; it has not the columns that it had; or no row is left.
    """
    source = SOURCES[config.name]
    output = user_path(config.output)
    inputs = {"source_file": config.source_file, **{f"without={p}": p for p in config.without}}
    check_new_file(output, overwrite=config.overwrite, inputs=inputs)
    known = {prompt for path in config.without for prompt in _prompts(user_path(path))}
    place = config.source_file or source.place
    rows = _local(config.source_file) if config.source_file else _fetched(config.name, source)
    lines = [_line(row, config.name, place) for row in rows if _is_wanted(row, config.name, place)]
    lines = [line for line in lines if line["prompt"].strip() not in known]
    if not lines:
        raise ValueError(f"at least one row of {place} must be left to write, got none")
    with whole_file(output) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _is_wanted(row: Mapping[str, Any], name: str, place: str) -> bool:
    keep = SOURCES[name].keep
    if keep is None:
        return True
    column, value = keep
    if column not in row:
        raise _other_columns(row, column, name, place)
    return row[column] == value


def _line(row: Mapping[str, Any], name: str, place: str) -> dict[str, str]:
    source = SOURCES[name]
    try:
        line = {"prompt": source.prompt(row)}
        return line if source.completion is None else {**line, "completion": source.completion(row)}
    except KeyError as error:
        raise _other_columns(row, error.args[0], name, place) from error
    except ValueError as error:
        raise ValueError(f"in a row of {place}, {error}: its authors changed it") from error


def _other_columns(row: Mapping[str, Any], column: str, name: str, place: str) -> ValueError:
    return ValueError(
        f"{place} must have the column {column!r} of {name}, got {sorted(map(str, row))}: its "
        "authors changed it, or it is another set"
    )


def _prompts(path: Path) -> list[str]:
    """The prompts of a file that this module wrote."""
    if not path.is_file():
        raise ValueError(f"prompt file {path} does not exist: fetch it first")
    prompts = []
    for line in read_lines(path):
        value = parse_line(line, path)
        prompt = value.get("prompt") if isinstance(value, Mapping) else None
        if not isinstance(prompt, str):
            raise ValueError(
                f"{path}, line {line.number}, must have a text as its prompt: give a file that "
                "`pact recipe data` wrote"
            )
        prompts.append(prompt.strip())
    return prompts


def _local(path: str | Path) -> list[Mapping[str, Any]]:
    """The rows of a file by their columns."""
    file = user_path(path)
    if not file.is_file():
        raise ValueError(f"source_file {path} does not exist: name a copy that is there")
    rows = []
    for where, value in open_source(str(file), None).rows:
        if isinstance(value, ValueError):
            raise value
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must have columns, got {short(value)}: it is another set")
        rows.append(value)
    return rows


def _fetched(name: str, source: Source) -> Iterable[Mapping[str, Any]]:
    """The rows of a set from where its authors keep it."""
    try:
        if source.place.startswith("https://"):
            return _downloaded(source.place)
        return load_dataset(source.place, source.subset, split=source.split)
    except Exception as error:  # the clients of hub and web raise errors of many kinds
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{name} must be fetched from {source.place}, which failed: "
            f"{_remedy(source, cause)} ({cause})"
        ) from error


def _downloaded(address: str) -> list[Mapping[str, Any]]:
    """The rows of a file on the web."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / address.rpartition("/")[2]
        with urlopen(address, timeout=TIMEOUT_S) as response:
            file.write_bytes(response.read())
        return _local(file)


def _remedy(source: Source, cause: str) -> str:
    """What a failed fetch asks for."""
    words = cause.lower()
    by_hand = "or fetch the file elsewhere and give it as --source-file"
    on_hub = not source.place.startswith("https://")
    if on_hub and any(word in words for word in ("gated", "401", "403", "authenticated")):
        page = f"https://huggingface.co/datasets/{source.place}"
        return f"accept its terms at {page} and log in by `hf auth login`, {by_hand}"
    if on_hub and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return f"HF_HUB_OFFLINE is set: unset it for this command, {by_hand}"
    if any(word in words for word in ("offline", "connection", "urlopen error", "timed out")):
        return f"there is no network: connect for this command, {by_hand}"
    return f"its authors may have moved it: look at {source.place}, {by_hand}"
