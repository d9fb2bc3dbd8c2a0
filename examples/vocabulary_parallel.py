"""PACT's loss where no process holds the whole output head.

    torchrun --nproc-per-node=2 examples/vocabulary_parallel.py

Every process has the same states and a part of the head's tokens, of any size. The loss and the
states' gradient are those of one process; each part gets its own gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

import pact_kernels as pk

VOCABULARY, WIDTH, ROWS = 32_003, 256, 64


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)  # the same numbers in every process
    head = torch.randn(VOCABULARY, WIDTH, generator=g).div_(WIDTH**0.5).to(device)
    states = torch.randn(ROWS, WIDTH, generator=g).to(device)
    target = torch.randint(VOCABULARY, (ROWS,), generator=g).to(device)
    token_ids = torch.randperm(VOCABULARY, generator=g)[:50].to(device)
    step = torch.arange(ROWS, device=device) % 8

    def loss_of(hidden: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup | None):
        reference = pk.ReferenceStates(states.flip(0), None, weight.detach())
        given = (token_ids, torch.ones(50, device=device), step, reference)
        options = {"over": "vocabulary", "gate": None, "process_group": group}
        return pk.pact_loss(hidden, weight, target, *given, **options).loss

    whole, part = (states.clone().requires_grad_() for _ in range(2))
    mine = head.tensor_split(size)[rank].clone().requires_grad_()  # 16002 and 16001 tokens
    loss = loss_of(part, mine, dist.group.WORLD)
    loss.backward()
    one = loss_of(whole, head, None)
    one.backward()
    error = float((part.grad - whole.grad).norm() / whole.grad.norm())
    if rank == 0:
        print(f"{size} processes, {mine.shape[0]} of {VOCABULARY} tokens in the first")
        print(f"loss {float(loss):.6f}, by one process {float(one):.6f}")
        print(f"relative error of the states' gradient {error:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
