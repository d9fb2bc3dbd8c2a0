"""A training loop of your own, with the recommended objective and a live reference.

    python examples/plain_loop.py MODEL TOKENS DATA OUTPUT [STEPS]

MODEL is an aligned chat model, TOKENS the file of `pact discover`, DATA conversations in any form
that `pact train` reads.
"""

from __future__ import annotations

import sys
from itertools import cycle, islice

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

import pact_kernels as pk
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.spans import answer_rows
from pact.discovery import SafetyTokens
from pact.models import hidden_states, output_head
from pact.reference.live import adapters_off


def main(name: str, tokens: str, data: str, output: str, steps: str = "20") -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), lora).train()
    found = SafetyTokens.load(tokens)
    token_ids = found.ids[found.weights > 0]  # (K,) what refusals are likelier to say

    examples = encode_examples(load_examples(data), tokenizer, max_length=1024)
    loader = DataLoader(examples, 2, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for step, batch in enumerate(islice(cycle(loader), int(steps)), 1):
        given = batch["input_ids"], batch["attention_mask"]  # (B, L) each
        rows, head = answer_rows(batch["labels"]), output_head(model)  # N rows
        with torch.no_grad(), adapters_off(model):
            full = hidden_states(model, *given)[rows.sequence, rows.position]  # (N, D)
        target = pad(batch["labels"][:, 1:], (0, 1), value=-100)  # (B, L) shifted
        reference = pk.ReferenceStates(full, None, head.weight)
        tokens_of = token_ids, torch.ones(len(token_ids)), rows.step
        options = {"over": "vocabulary", "gate": None, "kl_weight": 10.0, **head.options}
        options["row_weight"] = torch.exp(-rows.step / 0.5)  # the first tokens decide a refusal
        hidden = hidden_states(model, *given)  # (B, L, D)
        out = pk.pact_loss(hidden, head.weight, target, *tokens_of, reference, **options)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"{step}: cross-entropy {out.cross_entropy:.3f}, KL {out.kl:.1e}")
    model.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
