"""Fine-tune with a subclass of Trainer that is somebody else's: a mixin makes its loss PACT's.

    python examples/any_trainer.py MODEL TOKENS DATA OUTPUT

`Theirs` stands for a team's trainer, LLaMA-Factory's `CustomSeq2SeqTrainer` for one: it keeps its
optimiser, its callbacks and its `compute_loss`.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.training.student import add_adapters


class Theirs(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)


class Mine(PatchedTrainer, Theirs):
    """The mixin stands before their class; its logs have cross_entropy and kl."""


def main(model_name: str, tokens: str, data: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    trainer = Mine(
        model=add_adapters(AutoModelForCausalLM.from_pretrained(model_name)),
        args=TrainingArguments(
            output, learning_rate=1e-4, max_steps=20, logging_steps=5, report_to="none"
        ),
        train_dataset=encode_examples(load_examples(data), tokenizer, max_length=1024),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        tokens=SafetyTokens.load(tokens),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
