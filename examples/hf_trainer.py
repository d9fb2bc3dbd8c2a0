"""Fine-tune with transformers' own Trainer: one line makes its loss PACT's.

    python examples/hf_trainer.py MODEL TOKENS DATA OUTPUT

MODEL is an aligned chat model, TOKENS the file of `pact discover`, DATA conversations in any form
that `pact train` reads.
"""

from __future__ import annotations

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

import pact
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.discovery import SafetyTokens


def main(model_name: str, tokens: str, data: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))

    pact.patch(model, tokens=SafetyTokens.load(tokens))  # the line

    examples = encode_examples(load_examples(data), tokenizer, max_length=1024)
    arguments = TrainingArguments(
        output,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        max_steps=20,
        logging_steps=5,
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
