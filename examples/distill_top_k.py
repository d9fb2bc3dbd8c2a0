"""Distil a student from a file of its teacher's most likely tokens: no teacher in memory.

    python examples/distill_top_k.py STUDENT FILE STEPS

FILE is a safetensors file that anyone's teacher wrote: `input_ids` (B, L), and for each position
but the last the K most likely next tokens, `token_ids` (B, L - 1, K), and their log-probabilities,
`log_probs`. What the teacher gave to all other tokens is matched as one class.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pact_kernels as pk
from pact.models import hidden_states, output_head


def main(student: str, file: str, steps: str) -> list[float]:
    stored = load_file(file)
    ids, tokens, log_probs = (stored[name] for name in ("input_ids", "token_ids", "log_probs"))
    model = AutoModelForCausalLM.from_pretrained(student).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = tokens.shape[:2].numel()  # N = B (L - 1)
    teacher = pk.ReferenceLogits(log_probs.flatten(0, 1), None, torch.zeros(rows))
    losses = []
    for _ in range(int(steps)):
        states = hidden_states(model, ids, torch.ones_like(ids))[:, :-1]  # (B, L - 1, D)
        head = output_head(model)
        loss = pk.pact_kl(
            states.flatten(0, 1),
            head.weight,
            tokens.flatten(0, 1),  # (N, K): each row's own
            None,
            torch.zeros(rows, dtype=torch.int64),
            teacher,
            over="vocabulary",
            gate=None,
            **head.options,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"KL to the teacher: {losses[0]:.3f} nats before, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
