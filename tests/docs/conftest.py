"""What the snippets of the pages assume, with a tiny random model, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.discovery import SafetyTokens
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

CONVERSATIONS = [
    [
        {"role": "user", "content": "How do I do that?" + " Please." * n},
        {"role": "assistant", "content": "I cannot help with that request." + " Sorry." * (3 - n)},
    ]
    for n in range(4)  # prompts and answers of unlike length
]


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    """What the sections of docs/guides/operators.md assume."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=0.1)
    model = get_peft_model(tiny_llama(), lora).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at first: student and reference would be one
            torch.nn.init.normal_(parameter)
    tokenizer = tiny_tokenizer()
    encoded = encode_examples(CONVERSATIONS, tokenizer, max_length=100)
    dataset = [
        {**{k: row[k] for k in ("input_ids", "labels")}, "attention_mask": [1] * len(row["labels"])}
        for row in encoded
    ]
    collate = Collator((), tokenizer.pad_token_id, post_only=False)
    kept = ("input_ids", "attention_mask", "labels")
    batches = [collate([encoded[n] for n in pair]) for pair in ((0, 1), (2, 3))]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "batches": [{k: batch[k] for k in kept} for batch in batches],
        "token_ids": torch.tensor([5, 17, 40, 99, 260]),
        "token_weights": torch.tensor([0.6, -0.1, 0.3, 0.2, 0.5]),
        "dataset": dataset,
        "output_dir": str(tmp_path / "run"),
        "aligned": tiny_llama(seed=1),
        "base": tiny_llama(seed=2),
    }


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the files that the pages speak of."""
    save_tiny(tmp_path / "my-aligned-model")
    rows = "\n".join(json.dumps({"messages": turns}) for turns in CONVERSATIONS)
    for name in ("chats.jsonl", "refusals.jsonl", "anchors.jsonl"):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    tokens = SafetyTokens(torch.tensor([5, 17, 40]), torch.tensor([0.6, -0.1, 0.3]))
    tokens.save(tmp_path / "tokens.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # of the reference cache
    return tmp_path


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
