"""Keep liger-kernel's cross-entropy, and add the KL on the safety tokens beside it.

    python examples/beside_liger.py MODEL TOKENS DATA [STEPS]

liger-kernel needs a GPU. The KL over the selection is the released objective's: its products are
of K tokens, not of the vocabulary. For the recommended one, over the vocabulary, take `pact_loss`
for both terms, which shares the products (`examples/plain_loop.py`).
"""

from __future__ import annotations

import sys
from itertools import cycle, islice

import torch
from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

import pact_kernels as pk
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.spans import answer_rows
from pact.discovery import SafetyTokens
from pact.models import hidden_states, output_head
from pact.reference.live import adapters_off


def main(name: str, tokens: str, data: str, steps: str = "20") -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, found = AutoTokenizer.from_pretrained(name), SafetyTokens.load(tokens)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), lora).to(device).train()
    examples = encode_examples(load_examples(data), tokenizer, max_length=1024)
    loader = DataLoader(examples, 2, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    cross_entropy_of = LigerFusedLinearCrossEntropyLoss()
    for batch in islice(cycle(loader), int(steps)):
        ids, mask, labels = (batch[k].to(device) for k in ("input_ids", "attention_mask", "labels"))
        rows, weight = answer_rows(labels), output_head(model).weight
        with torch.no_grad(), adapters_off(model):
            full = hidden_states(model, ids, mask)[rows.sequence, rows.position]  # (N, D)
        reference = pk.ReferenceStates(full, None, weight)
        given = found.ids.to(device), found.weights.to(device), rows.step, reference
        hidden = hidden_states(model, ids, mask)[rows.sequence, rows.position]  # (N, D)
        cross_entropy = cross_entropy_of(weight, hidden, labels[rows.sequence, rows.position + 1])
        kl = pk.pact_kl(hidden, weight, *given, over="selection", gate=None)
        (cross_entropy + kl).backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"cross-entropy {cross_entropy:.3f}, KL {kl:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
