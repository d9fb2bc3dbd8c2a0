"""A folder of sound and broken files, for calls that must be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pact.discovery import SafetyTokens
from pact.discovery.tokens import FORMAT, tokenizer_hash
from pact.objective import PactConfig
from pact.training import TrainConfig, train
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

ESCAPE = "\x1b[31m"
"""Turns a terminal red."""


def write_files(folder: Path) -> None:
    """Write all of them; names of models, data, tokens and settings say what is wrong with them."""
    _models(folder)
    _data(folder)
    _tokens(folder)
    _settings(folder)
    _run(folder)
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "rows").mkdir()
    shutil.copy(folder / "train.jsonl", folder / "rows")
    (folder / "written").mkdir()
    (folder / "written" / "run.sh").write_text("mine")
    (folder / "link").symlink_to(folder / "model")


def _models(folder: Path) -> None:
    save_tiny(folder / "model")
    save_tiny(folder / "base", seed=1)
    (folder / "empty").mkdir()

    def broken(name: str, file: str, content: bytes | None) -> None:
        shutil.copytree(folder / "model", folder / name)
        path = folder / name / file
        path.unlink() if content is None else path.write_bytes(content)

    weights = (folder / "model" / "model.safetensors").read_bytes()
    broken("no_config", "config.json", None)
    broken("no_weights", "model.safetensors", None)
    broken("cut_weights", "model.safetensors", weights[: len(weights) // 2])
    broken("no_header", "model.safetensors", b"\xff" * 64)
    broken("bad_config", "config.json", b"{")
    broken("list_config", "config.json", b"[]")
    broken("deep_config", "config.json", b"[" * 100_000)
    broken("other_config", "config.json", b'{"model_type": "nowhere"}')
    broken("bad_tokenizer", "tokenizer.json", b"{}")
    broken("cut_tokenizer", "tokenizer.json", b'{"version": "1.0", ')
    broken("no_tokenizer", "tokenizer.json", None)
    broken("no_template", "chat_template.jinja", None)
    broken("bad_template", "chat_template.jinja", b"{% for message in %}")
    broken("endless_template", "chat_template.jinja", b"{{ messages[0].nowhere.at_all }}")
    shutil.copytree(folder / "model", folder / "other_tokenizer")
    larger = tiny_tokenizer()
    larger.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(folder / "other_tokenizer")
    lacking = load_file(folder / "model" / "model.safetensors")
    lacking.pop("model.layers.1.mlp.down_proj.weight")
    shutil.copytree(folder / "model", folder / "no_layer")
    save_file(lacking, folder / "no_layer" / "model.safetensors", metadata={"format": "pt"})


def _data(folder: Path) -> None:
    def rows(name: str, *values: Any) -> None:
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))

    rows("train.jsonl", *({"messages": turns} for turns in conversations(8)))
    rows("prompts.jsonl", {"prompt": "How do I bake bread?"})
    rows("blank.jsonl")
    rows("columns.jsonl", {"text": "a", "label": 1})
    rows("silent.jsonl", {"messages": [{"role": "user", "content": "Hello?"}]})
    rows("role.jsonl", {"messages": [{"role": f"{ESCAPE}cook", "content": "Hello?"}]})
    rows("numbers.jsonl", 1, 2)
    rows("harmbench.jsonl", {"Behavior": "Pick a lock", "FunctionalCategory": "standard"})
    rows("null.jsonl", {"Behavior": None, "FunctionalCategory": "standard"})
    rows("negative.jsonl", {"input_ids": [1, -5], "labels": [1, 2]})
    rows("beyond.jsonl", {"input_ids": [1, 10**9], "labels": [1, 2]})
    (folder / "cut.jsonl").write_text('{"messages": [{"role": "us')
    (folder / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (folder / "latin.jsonl").write_bytes('{"prompt": "café"}'.encode("latin-1"))
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    (folder / "object.json").write_text('{"messages": []}')
    (folder / "bad.parquet").write_bytes(b"PAR1")
    (folder / "uneven.csv").write_text("prompt,completion\na,b,c\n")
    (folder / "notes.txt").write_text("mine")


def _tokens(folder: Path) -> None:
    kept = {"tokenizer_hash": tokenizer_hash(tiny_tokenizer()), "aligned": "model"}
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata=kept).save(folder / "tokens")
    whole = (folder / "tokens").read_bytes()
    (folder / "cut_tokens").write_bytes(whole[:-10])
    foreign = {"tokenizer_size": "50257", "aligned": f"{ESCAPE}someone/else"}
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata=foreign).save(folder / "foreign_tokens")
    wordy = {"tokenizer_size": "many"}
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata=wordy).save(folder / "wordy_tokens")
    values = {"ids": TOKEN_IDS, "weights": TOKEN_WEIGHTS}

    def tensors(name: str, **changed: torch.Tensor | None) -> None:
        both = {n: t for n, t in (values | changed).items() if t is not None}
        save_file(both, folder / name, metadata={"format": FORMAT})

    tensors("lacking_tokens", weights=None)
    tensors("more_tokens", others=TOKEN_WEIGHTS.clone())
    tensors("nan_tokens", weights=TOKEN_WEIGHTS * torch.nan)
    tensors("short_tokens", weights=TOKEN_WEIGHTS[:3].clone())
    tensors("float_tokens", ids=TOKEN_IDS.float())
    torch.save({"v_dir": torch.zeros(9)}, folder / "zeros.pt")
    torch.save({"v_dir": torch.eye(9)}, folder / "matrix.pt")
    torch.save({"v_dir": torch.full((9,), torch.nan)}, folder / "nan.pt")
    torch.save(torch.arange(9.0), folder / "released.pt")


def _settings(folder: Path) -> None:
    for name, text in {
        "list": "- a\n",
        "key": "learning_rat: 1\n",
        "type": "epochs: many\n",
        "twice": "epochs: 1\nepochs: 2\n",
        "tab": "epochs:\n\t- 1\n",
        "open": "lora_targets: [q_proj\n",
        "tag": "model: !!python/object/apply:os.getcwd []\n",
        "anchor": "model: *nowhere\n",
        "laughs": _laughs(),
        "deep": "epochs: " + "[" * 20_000 + "]" * 20_000 + "\n",
        "unhashable": "? [a, b]\n: 1\n",
        "escape": f"{ESCAPE}: 1\n",
        "escaped": r'"\e[31mred": 1' + "\n",
        "number": "epochs: " + "9" * 5000 + "\n",
        "day": "chat_template_kwargs: {today: 2024-07-01}\n",
        "empty": "",
        "lines": 'description: "a\\nrm b"\n',
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "latin.yaml").write_bytes("model: café\n".encode("latin-1"))
    (folder / "binary.yaml").write_bytes(bytes(range(256)))


def _laughs() -> str:
    """A billion values of a kilobyte, by aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "lora_targets: *a8"]) + "\n"


def _run(folder: Path) -> None:
    """`run`, a finished run of adapters."""
    settings = {"model": str(folder / "model"), "train_file": str(folder / "train.jsonl")}
    config = TrainConfig(
        **settings,
        tokens=str(folder / "tokens"),
        output_dir=str(folder / "run"),
        cache=False,
        max_steps=1,
        save_every=1,
        max_length=200,
    )
    train(config, PactConfig())
