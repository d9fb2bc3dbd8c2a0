"""Fine-tune with TRL: `PactSFTTrainer` takes what SFTTrainer takes, and the safety tokens.

    python examples/trl_sft.py MODEL TOKENS DATA OUTPUT

DATA is a JSON-lines file of TRL's: `messages`, or `prompt` and `completion`.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig

from pact import PactConfig
from pact.discovery import SafetyTokens
from pact.integrations.trl import PactSFTTrainer


def main(model: str, tokens: str, data: str, output: str) -> None:
    args = SFTConfig(
        output,
        packing=True,
        max_length=512,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        max_steps=20,
        logging_steps=5,
        report_to="none",
    )
    trainer = PactSFTTrainer(
        model,
        args,
        tokens=SafetyTokens.load(tokens),
        pact=PactConfig(kl_weight=10.0),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
