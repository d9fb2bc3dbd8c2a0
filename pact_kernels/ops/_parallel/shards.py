"""What the processes of a group exchange: log-sum-exps, a few logits, and one hidden gradient.

Every process holds a part of the head's rows, in the order of the ranks, and the same states and
targets. Losses are formed alike in all of them, so a gradient that arrives at an exchanged value is
the same everywhere and is not summed again; the states' gradient is, once.

    forward     MAX of (N, M) log-sum-exps and the shards' sizes     4 N M bytes
                SUM of (N, M) exponentials                           4 N M
                SUM of (N, C) logits: targets, selected tokens       4 N C
    backward    SUM of dHidden (N, D)                                2 N D in 16 bits

Legend: N rows, D hidden size, V vocabulary, V_r tokens of this process, M log-sum-exps of a row
(the student's, the references'), C columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pact_kernels.types import Head

Group = Any  # torch.distributed.ProcessGroup


class Shards(NamedTuple):
    """Which tokens are this process's; on the device, so that nothing waits for them."""

    first: Tensor
    """() int64"""
    size: int
    """V_r"""
    vocabulary: Tensor
    """() int64, V"""

    def own(self, token_ids: Tensor) -> Tensor:
        """Which of some tokens are of this process."""
        return (token_ids >= self.first) & (token_ids < self.first + self.size)

    def local(self, token_ids: Tensor) -> Tensor:
        """Their rows in its part of the head; of others any row."""
        return (token_ids - self.first).clamp(0, self.size - 1)

    def check(self, name: str, token_ids: Tensor) -> None:
        """Refuse tokens beyond the vocabulary, on a CPU, where looking costs nothing.

        Raises:
            ValueError: there are some; in every process alike.
        """
        if token_ids.device.type != "cpu" or token_ids.numel() == 0:
            return
        low, high, vocabulary = int(token_ids.min()), int(token_ids.max()), int(self.vocabulary)
        if low < 0 or high >= vocabulary:
            raise ValueError(f"{name} must be in [0, V={vocabulary}), got {low} to {high}")


def local_head(head: Head, group: Group) -> Head:
    """The part of the head that this process holds, as plain tensors.

    Raises:
        ValueError: a DTensor that is not cut along the vocabulary over the group, or an empty part.
    """
    weight, bias = (
        None if tensor is None else _local(tensor, name, group)
        for name, tensor in (("weight", head.weight), ("bias", head.bias))
    )
    assert weight is not None
    if weight.shape[0] == 0:
        raise ValueError(
            "every process must hold at least one token of the head, got none in this one: shard "
            "over fewer processes"
        )
    return head._replace(weight=weight, bias=bias)


def _local(tensor: Tensor, name: str, group: Group) -> Tensor:
    placements: Any = getattr(tensor, "placements", None)
    if placements is None:
        return tensor
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    cut = [n for n, placement in enumerate(placements) if not placement.is_replicate()]
    if len(cut) != 1 or not placements[cut[0]].is_shard(0):
        raise ValueError(
            f"{name} must be sharded along the vocabulary, Shard(0), on one dimension of its mesh, "
            f"got {placements}: redistribute it"
        )
    if dist.get_process_group_ranks(mesh.get_group(cut[0])) != dist.get_process_group_ranks(group):
        raise ValueError(
            f"{name} must be sharded over process_group, got another group: pass "
            f"{name}.device_mesh.get_group({cut[0]})"
        )
    return tensor.to_local()  # type: ignore[attr-defined,no-any-return]


class _Entered(torch.autograd.Function):
    """The states as they are; their gradient is summed over the group."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Summed(torch.autograd.Function):
    """The sum over the group; every part gets the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Group) -> Tensor:
        total = parts.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exps over the shards from those of each; and the shards' sizes, on the way."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor]:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        sizes = parts.new_zeros(size)
        sizes[rank] = count  # exact: fp32 holds every integer up to 2^24
        largest = torch.cat([parts.reshape(-1), sizes])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        row_max, sizes = largest[: parts.numel()].view_as(parts), largest[parts.numel() :]
        shift = row_max.masked_fill(row_max == -torch.inf, 0.0)
        total = (parts - shift).exp()
        dist.all_reduce(total, group=group)
        lse = shift + total.log()
        ctx.save_for_backward((parts - lse).exp().nan_to_num(nan=0.0))  # each shard's mass
        sizes = sizes.long()
        ctx.mark_non_differentiable(sizes)
        return lse, sizes

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (mass,) = ctx.saved_tensors
        return grad * mass, None, None


def enter(hidden: Tensor, group: Group) -> Tensor:
    """The states, whose gradient will be that of all shards."""
    return _Entered.apply(hidden, group) if hidden.requires_grad else hidden


def summed(parts: Tensor, group: Group) -> Tensor:
    """The sum over the group."""
    return _Summed.apply(parts, group)


def logsumexp(parts: Tensor, count: int, group: Group) -> tuple[Tensor, Shards]:
    """(N, M) log-sum-exps of this process's `count` tokens -> those of all, and who has which."""
    lse, sizes = _LogSumExp.apply(parts, count, group)
    return lse, Shards(sizes[: dist.get_rank(group)].sum(), count, sizes.sum())
