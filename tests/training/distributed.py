"""Run by `test_loop` in two processes: train with `fit` and `PactTrainer`, and save the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from pact.objective import PactConfig
from pact.training.config import FitConfig
from pact.training.trainer import PactTrainer
from tests.tiny import tiny_llama
from tests.training.problem import one_step, parameters_of, problem

STEPS = {  # (micro_batch_size, packed) -> name
    (8, False): "padded",
    (2, False): "padded-by-2",
    (8, True): "packed",
    (1, True): "packed-by-1",
}


def by_fit() -> nn.Module:
    """5 examples in steps of 4: in every second step, one of two processes has no share."""
    model = tiny_llama()
    config = FitConfig(
        max_steps=4, batch_size=4, micro_batch_size=1, learning_rate=1e-2, warmup_ratio=0.0
    )
    problem(PactConfig(over="selection"), count=5).fit(model, config)
    return model


def by_step(micro_batch_size: int, packed: bool) -> dict[str, Tensor]:
    """Gradients and loss of one step of 8 examples."""
    given = problem(PactConfig(over="selection"), count=8)
    given = given.packed(pack_length=150) if packed else given
    reference = given.reference(tiny_llama(seed=1))
    record, gradients = one_step(given, tiny_llama(), reference, micro_batch_size=micro_batch_size)
    return gradients | {name: torch.tensor(record[name]) for name in ("loss", "kl", "gate")}


def by_trainer(folder: Path, num_processes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """8 examples in steps of 4, one in a micro-batch; and an evaluation of 5 after it."""
    given = problem(PactConfig(over="selection"), count=8)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // num_processes,
        per_device_eval_batch_size=2,
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
        eval_dataset=given.dataset.select(range(5)),  # the last batch of two processes is filled up
    )
    trainer.train()
    metrics = trainer.evaluate()
    names = ("eval_loss", "eval_kl", "eval_gate")
    return trainer.model, {name: torch.tensor(metrics[name]) for name in names}


def main(folder: Path) -> None:
    processes = PartialState(cpu=True)
    trained, losses = by_trainer(folder, processes.num_processes)
    models = {"fit": by_fit(), "trainer": trained}
    if processes.is_main_process:
        for name, model in models.items():
            weights = {n: p.contiguous() for n, p in parameters_of(model).items()}
            save_file(weights, folder / f"{name}.safetensors")
        save_file(losses, folder / "evaluation.safetensors")
    for (size, packed), name in STEPS.items():
        step = by_step(size, packed)
        if processes.is_main_process:
            save_file(step, folder / f"{name}.safetensors")
    processes.wait_for_everyone()
