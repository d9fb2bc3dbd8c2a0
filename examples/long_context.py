"""One long sequence: what the loss takes beside its states does not grow with the tokens.

    python examples/long_context.py [TOKENS] [HIDDEN] [VOCABULARY]

Cross-entropy and KL of a sequence of TOKENS (65536 unless given) through a frozen head, on random
states, with the reference's values as a cache has them. On a GPU the allocator is asked, else the
peak of the process (Linux), so that a processor wants a run for each length.
"""

from __future__ import annotations

import resource
import sys

import torch

import pact_kernels as pk

MIB = 2**20


def used_mib(device: str) -> float:
    """The most so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(length: str = "65536", width: str = "128", vocabulary: str = "8000") -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, d, v, k = int(length), int(width), int(vocabulary), 50
    torch.manual_seed(0)
    hidden = torch.randn(1, n, d, device=device, requires_grad=True)  # (B, L, D), B = 1
    weight = torch.randn(v, d, device=device) / d**0.5
    target = torch.randint(v, (1, n), device=device)
    ids, step = torch.randperm(v, device=device)[:k], torch.arange(n, device=device)
    full = torch.randn(n, k, device=device)  # (N, K): 100 bytes a token in a cache's 16 bits
    reference = pk.ReferenceLogits(full, None, torch.full((n,), 10.0, device=device))
    before = used_mib(device)
    given = ids, torch.ones(k, device=device), step, reference
    out = pk.pact_loss(hidden, weight, target, *given, over="vocabulary", gate=None)
    out.loss.backward()
    extra = used_mib(device) - before - 4 * n * d / MIB
    print(f"{n} tokens, loss {out.loss:.3f}: {extra:.0f} MiB beyond the states and their gradient")
    print(f"their logits would take {4 * n * v / MIB:.0f} MiB, as often as something keeps them")
    return extra


if __name__ == "__main__":
    main(*sys.argv[1:])
