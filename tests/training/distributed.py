"""Run by `test_loop` in two processes: train with `fit` and with `PactTrainer`, save the weights.

torchrun --nproc-per-node=2 tests/training/distributed.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn
from transformers import TrainingArguments

from pact.config import PactConfig
from pact.training.config import FitConfig
from pact.training.trainer import PactTrainer
from tests.tiny import tiny_llama
from tests.training.problem import parameters_of, problem


def by_fit() -> nn.Module:
    """5 examples in steps of 4: in every second step, one of two processes has no share."""
    model = tiny_llama()
    config = FitConfig(
        max_steps=4, batch_size=4, micro_batch_size=1, learning_rate=1e-2, warmup_ratio=0.0
    )
    problem(PactConfig(), count=5).fit(model, config)
    return model


def by_trainer(folder: Path, num_processes: int) -> nn.Module:
    """8 examples in steps of 4, one in a micro-batch."""
    given = problem(PactConfig(), count=8)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // num_processes,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PactTrainer(
        tiny_llama(),
        arguments,
        objective=given.objective,
        reference=given.reference(tiny_llama(seed=1)),
        data_collator=given.collator,
        train_dataset=given.dataset,
    )
    trainer.train()
    return trainer.model


def main(folder: Path) -> None:
    processes = PartialState(cpu=True)
    models = {"fit": by_fit(), "trainer": by_trainer(folder, processes.num_processes)}
    if processes.is_main_process:
        for name, model in models.items():
            weights = {n: p.contiguous() for n, p in parameters_of(model).items()}
            save_file(weights, folder / f"{name}.safetensors")
    processes.wait_for_everyone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
