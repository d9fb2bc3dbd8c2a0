"""The readers of files, each with valid files and what may be done with bytes in their place.

A reader takes bytes and a folder of its own. It returns, or raises a ValueError: anything else that
comes out of it is a fault.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, disable_progress_bars

from pact.common.disk import digest
from pact.common.settings import Setting, make_configs, read_mapping, read_values, settings_of
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.jsonl import parse_json
from pact.data.sources import open_source
from pact.data.tokenised import tokenised_dataset
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.reference.shards import Layout, open_shard, write_shard
from pact.training.config import TrainConfig
from pact.training.manifest import MANIFEST, damage, write_manifest
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

disable_progress_bars()


class Target(NamedTuple):
    """A reader of files."""

    seeds: Callable[[Path], list[bytes]]
    """Valid inputs; it may write files into an empty folder to make them."""
    read: Callable[[bytes, Path], object]
    """Reads what was made of valid inputs, in a folder that holds no files of others."""


TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "No.", "train": 1}]
CALL = {"id": "c", "type": "function", "function": {"name": "bake", "arguments": {"loaves": 2}}}
ROWS: list[dict[str, Any]] = [
    {"messages": TURNS * 2},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, *TURNS]},
    {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "Hm."},
            {"role": "tool", "content": "2", "name": "bake", "tool_call_id": "c"},
            {"role": "assistant", "content": "Two.", "weight": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "bake", "parameters": {}}}],
    },
    {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "No."}]},
    {"prompt": TURNS[:1], "completion": TURNS[1:], "chat_template_kwargs": {"a": [1, None]}},
    {"prompt": "Hello?", "completion": "No.", "system": "Be kind."},
    {"instruction": "Say", "input": "it", "output": "No.", "history": [["Hello?", "No."]]},
]
TOKENISED = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "attention_mask": [0, 1, 1]},
    {"input_ids": [5, 6], "assistant_masks": [False, True]},
]
TEMPLATE = (
    "{% if a %}{{ a }}{% endif %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with tools, thoughts and a variable."""
SETTINGS = """\
model: models/tiny
tokens: tokens.safetensors
train_file: train.jsonl
output_dir: run
epochs: 2
learning_rate: 3e-5
lora_targets: [q_proj, v_proj]
chat_template_kwargs: {enable_thinking: false, names: [a, b]}
packing: yes
over: vocabulary
kl_weight: 1.5
cache_dir: ~/caches
"""
TAGGED = "packing: !!bool yes\nepochs: !!int 2\nseed: &n !!int '0x10'\nlora_r: *n\n"
CONFIGS = (TrainConfig, PactConfig)


@cache
def settings() -> dict[str, Setting]:
    return settings_of(CONFIGS)


@cache
def tokenizer() -> Any:
    return tiny_tokenizer(TEMPLATE)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def conversations(suffix: str) -> Callable[[bytes, Path], object]:
    """A data file, as training reads it, once strictly and once with bad rows left out."""

    def read(data: bytes, folder: Path) -> None:
        path = folder / f"data{suffix}"
        path.write_bytes(data)
        try:
            encoded(load_examples(str(path)))
        except ValueError:
            encoded(load_examples(str(path), skip_bad_rows=True))

    return read


def encoded(found: list[Any]) -> Dataset:
    return encode_examples(found, tokenizer(), 256, skip_bad_rows=True, fold_system=True)


def read_forms(data: bytes, folder: Path) -> None:
    """One row, which is JSON or else is passed over."""
    encoded(load_examples([parse_json(data.decode())]))


def read_tokenised(data: bytes, folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(data)
    rows = [(row.where, row.value) for row in open_source(str(path), None).rows]
    try:
        tokenised_dataset(rows, "rows", VOCAB_SIZE, 8)
    except ValueError:
        tokenised_dataset(rows, "rows", VOCAB_SIZE, 8, skip_bad_rows=True)


def read_settings(data: bytes, folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_bytes(data)
    values = read_values(read_mapping(path), settings(), path)
    needed = {"model": "m", "train_file": "t", "output_dir": "o", "tokens": "s"}
    make_configs(CONFIGS, needed | values)


def csv_seeds(folder: Path) -> list[bytes]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "completion"])
    writer.writerows([["Hello?", "No."], ["two\nlines", 'a "quote"'], ["", "x"]])
    turns = io.StringIO()
    csv.writer(turns).writerows([["messages"], [json.dumps(TURNS)]])
    return [text.getvalue().encode(), turns.getvalue().encode()]


def parquet_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for compression in ("none", "snappy"):
        path = folder / f"{compression}.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS[:1] * 3), path, compression=compression)
        seeds.append(path.read_bytes())
    return seeds


def token_seeds(folder: Path) -> list[bytes]:
    ids, values = torch.tensor([3, 5, 9]), torch.tensor([0.5, -0.25, 0.125])
    metadata = {"aligned": "a model", "tokenizer_size": "320"}
    path = folder / "tokens.safetensors"
    SafetyTokens(ids, values, values.abs(), values.abs(), metadata).save(path)
    return [path.read_bytes()]


def read_tokens(data: bytes, folder: Path) -> None:
    path = folder / "tokens.safetensors"
    path.write_bytes(data)
    SafetyTokens.load(path).check_tokenizer(tokenizer())


@cache
def head_and_body() -> tuple[bytes, bytes]:
    """The JSON of a valid token file, and the numbers behind it."""
    with TemporaryDirectory() as folder:
        (seed,) = token_seeds(Path(folder))
    end = 8 + int.from_bytes(seed[:8], "little")
    return seed[8:end], seed[end:]


def read_header(data: bytes, folder: Path) -> None:
    """The JSON at the head of a token file, with its length before it and the numbers behind."""
    read_tokens(len(data).to_bytes(8, "little") + data + head_and_body()[1], folder)


LAYOUT = Layout(
    lengths=np.array([9, 7, 5]),
    row_counts=np.array([2, 0, 1]),
    num_tokens=4,
    contexts=("full", "post"),
    dtype="fp16",
)


@cache
def shard_and_note() -> tuple[bytes, bytes]:
    """A valid shard, and the JSON beside it."""
    values = [np.ones((LAYOUT.row_counts[n], 4), np.float16) for n in LAYOUT.examples(0)]
    with TemporaryDirectory() as folder:
        write_shard(Path(folder), 0, LAYOUT, {"full": values, "post": values})
        path = LAYOUT.path(Path(folder), 0)
        return path.read_bytes(), path.with_suffix(".json").read_bytes()


def read_shard(data: bytes, folder: Path) -> None:
    """A shard whose checksum is that of what is there, as malice would have it."""
    path = LAYOUT.path(folder, 0)
    path.write_bytes(data)
    facts = {"bytes": len(data), "xxh3_128": digest(path)}
    note = json.dumps(json.loads(shard_and_note()[1]) | facts)
    path.with_suffix(".json").write_text(note)
    shard = open_shard(folder, 0, LAYOUT).data
    for context in LAYOUT.contexts:
        shard.column(context).chunk(0).values.to_numpy(zero_copy_only=True).sum()


def read_note(data: bytes, folder: Path) -> None:
    path = LAYOUT.path(folder, 0)
    path.write_bytes(shard_and_note()[0])
    path.with_suffix(".json").write_bytes(data)
    open_shard(folder, 0, LAYOUT)


def manifest_seeds(folder: Path) -> list[bytes]:
    (folder / "weights").write_bytes(b"weights")
    (folder / "state").write_bytes(b"state")
    write_manifest(folder, 7)
    return [(folder / MANIFEST).read_bytes()]


def read_manifest(data: bytes, folder: Path) -> None:
    """Damage is said and never raised."""
    (folder / MANIFEST).write_bytes(data)
    found = damage(folder, 7)
    assert found is None or found


def state_seeds(folder: Path) -> list[bytes]:
    Dataset.from_list(ROWS[:1]).save_to_disk(folder / "saved")
    return [(folder / "saved" / name).read_bytes() for name in ("state.json", "dataset_info.json")]


def read_state(data: bytes, folder: Path) -> None:
    """A saved data set, of whose two descriptions one is the data."""
    saved = folder / "saved"
    Dataset.from_list(ROWS[:1]).save_to_disk(saved)
    name = "state.json" if b"_data_files" in data else "dataset_info.json"
    (saved / name).write_bytes(data)
    load_examples(str(saved))


TARGETS = {
    "jsonl": Target(lambda _: [lines(ROWS)], conversations(".jsonl")),
    "json": Target(lambda _: [json.dumps(ROWS).encode()], conversations(".json")),
    "csv": Target(csv_seeds, conversations(".csv")),
    "parquet": Target(parquet_seeds, conversations(".parquet")),
    "saved": Target(state_seeds, read_state),
    "forms": Target(lambda _: [json.dumps(row).encode() for row in ROWS], read_forms),
    "tokenised": Target(lambda _: [lines(TOKENISED)], read_tokenised),
    "settings": Target(lambda _: [SETTINGS.encode(), TAGGED.encode()], read_settings),
    "tokens": Target(token_seeds, read_tokens),
    "token-header": Target(lambda _: [head_and_body()[0]], read_header),
    "shard": Target(lambda _: [shard_and_note()[0]], read_shard),
    "shard-note": Target(lambda _: [shard_and_note()[1]], read_note),
    "manifest": Target(manifest_seeds, read_manifest),
}
