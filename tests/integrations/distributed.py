"""Run by `test_distributed` in two processes: `PactSFTTrainer`, patched models, torchtitan's loss.

torchrun --nproc-per-node=2 tests/integrations/distributed.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments
from trl import SFTConfig

import pact
from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.integrations.trl import PactSFTTrainer
from pact.objective import PactConfig
from pact.reference import FrozenModel
from tests.integrations.torchtitan_interface import above_the_stand_in
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, parameters_of, problem

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)
STEP = 4
"""Examples of an optimiser step, whatever the processes."""


def settings(folder: Path, num_processes: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": STEP // num_processes,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def by_sft(folder: Path, num_processes: int) -> dict[str, Tensor]:
    """Answers of 1 to 8 sentences, so that micro-batches differ in rows."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "completion": [{"role": "assistant", "content": "I cannot. " * (n + 1)}],
        }
        for n in range(8)
    ]
    trainer = PactSFTTrainer(
        tiny_llama(),
        SFTConfig(bf16=False, **settings(folder, num_processes)),
        tokens=TOKENS,
        reference=FrozenModel(tiny_llama(seed=1)),
        processing_class=tiny_tokenizer(),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    return parameters_of(trainer.model)


def by_patch(folder: Path, num_processes: int) -> dict[str, Tensor]:
    """transformers' own Trainer, and the parts of its losses as it logs them."""
    given = problem(PactConfig(gate=False), count=8)

    def collate(examples: list[Any]) -> dict[str, Tensor]:
        batch = given.collator(examples)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    class Mine(PatchedTrainer, Trainer):
        pass

    model = tiny_llama()
    trainer = Mine(
        model,
        TrainingArguments(**settings(folder, num_processes), logging_steps=1),
        train_dataset=given.dataset.select_columns(["input_ids", "labels"]),
        data_collator=collate,
        tokens=TOKENS,
        reference=FrozenModel(tiny_llama(seed=1)),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "kl" in entry]
    parts = {name: torch.tensor([e[name] for e in logged]) for name in ("cross_entropy", "kl")}
    return parameters_of(model) | parts


def by_fsdp(folder: Path, num_processes: int) -> dict[str, Tensor]:
    """A patched model under torch's `fully_shard`, which accelerate's FSDP2 calls (on GPUs alone):
    a layer is a unit, and the head is gathered with the rest of the root, once a step."""
    given = problem(PactConfig(gate=False), count=8)
    reference = FrozenModel(tiny_llama(seed=1))
    model = pact.patch(tiny_llama(), tokens=TOKENS, reference=reference).train()
    if num_processes > 1:
        mesh = init_device_mesh("cpu", (num_processes,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rank = PartialState().process_index
    for step in range(3):
        examples = [given.dataset[4 * (step % 2) + n] for n in range(4)]
        rows = sum(label != -100 for example in examples for label in example["labels"][1:])
        batch = given.collator(examples[rank::num_processes])
        kept = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        loss = model(**kept, num_items_in_batch=rows).loss
        (loss * num_processes).backward()  # whose gradients are averaged
        optimizer.step()
        optimizer.zero_grad()
    trained = dict(model.named_parameters())
    return {n: (p.full_tensor() if num_processes > 1 else p).detach() for n, p in trained.items()}


def by_torchtitan_loss(folder: Path, num_processes: int) -> dict[str, Tensor]:
    """torchtitan's loop around its loss, above a stand-in: norm and head are one unit, and the head
    is called by the loss alone."""
    model = tiny_llama().train()
    if num_processes > 1:
        mesh = init_device_mesh("cpu", (num_processes,))
        fully_shard([model.model.norm, model.lm_head], mesh=mesh)
        fully_shard(model.model, mesh=mesh)
        fully_shard(model, mesh=mesh)
    loss_fn = above_the_stand_in().FusedCrossEntropyLoss.Config().build()
    loss_fn.set_lm_head(model.lm_head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 320, (STEP, 12), generator=g)
    labels = ids.roll(-1, 1)
    for row in range(STEP):
        labels[row, : 2 * row] = -100  # so that processes differ in rows
    mine = slice(PartialState().process_index, None, num_processes)
    tokens = (labels != -100).sum() / num_processes  # gradients are averaged
    for _ in range(3):
        states = model.model(input_ids=ids[mine]).last_hidden_state
        loss_fn(states, labels[mine], tokens)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = dict(model.named_parameters())
    return {n: (p.full_tensor() if num_processes > 1 else p).detach() for n, p in trained.items()}


WAYS = {"sft": by_sft, "patch": by_patch, "fsdp": by_fsdp, "torchtitan": by_torchtitan_loss}


def main(folder: Path) -> None:
    processes = PartialState(cpu=True)
    for name, train in WAYS.items():
        trained = train(folder, processes.num_processes)
        if processes.is_main_process:
            save_file(
                {n: p.contiguous() for n, p in trained.items()}, folder / f"{name}.safetensors"
            )
    processes.wait_for_everyone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
