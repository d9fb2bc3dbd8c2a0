"""Run by torchrun from `test_loop`: train with `fit` or `PactTrainer`, and save the weights.

torchrun --nproc-per-node=2 tests/training/distributed.py fit OUTPUT
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainingArguments

from pact.config import PactConfig
from pact.training.config import FitConfig
from pact.training.trainer import PactTrainer
from tests.tiny import tiny_llama
from tests.training.problem import parameters_of, problem


def main(program: str, output: Path) -> None:
    processes = PartialState(cpu=True)
    model = tiny_llama()
    if program == "fit":
        given = problem(PactConfig(), count=5)
        config = FitConfig(
            max_steps=4, batch_size=4, micro_batch_size=1, learning_rate=1e-2, warmup_ratio=0.0
        )
        given.fit(model, config)
    else:
        given = problem(PactConfig(), count=8)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                max_steps=4,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=4 // processes.num_processes,
                learning_rate=1e-2,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            )
            trainer = PactTrainer(
                model,
                arguments,
                objective=given.objective,
                reference=given.reference(tiny_llama(seed=1)),
                data_collator=given.collator,
                train_dataset=given.dataset,
            )
            trainer.train()
    if processes.is_main_process:
        save_file({n: p.contiguous() for n, p in parameters_of(model).items()}, output)
    processes.wait_for_everyone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
