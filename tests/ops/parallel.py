"""Run by `test_parallel` in several processes: the ops over a sharded vocabulary.

torchrun --nproc-per-node=2 tests/ops/parallel.py FOLDER

Every process saves its values and gradients; the parent compares them with one process's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import pact_kernels as pk

VOCABULARY, WIDTH, TOKENS = 53, 24, 7
LINES, LENGTH = 3, 9


class Problem(NamedTuple):
    """One problem's tensors, whole."""

    hidden: Tensor  # (B, L, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    target: Tensor  # (B, L)
    token_ids: Tensor
    token_weights: Tensor
    step: Tensor  # (N,) of kept rows
    full: Tensor  # (N, D)
    post: Tensor
    other: Tensor  # (V, D) the reference's head
    row_weight: Tensor


def problem(dtype: torch.dtype, *, sure: bool = False) -> Problem:
    """Random logits; `sure` ones are far ahead at most targets, as a trained model's are."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(dtype)

    weight = randn(VOCABULARY, WIDTH, scale=2 * WIDTH**-0.5)
    target = torch.randint(VOCABULARY, (LINES, LENGTH), generator=g)
    hidden = randn(LINES, LENGTH, WIDTH)
    if sure:
        hidden = (3 * weight[target].float() + 0.2 * hidden.float()).to(dtype)
    target[:, :3] = -100
    rows = int((target != -100).sum())
    return Problem(
        hidden=hidden,
        weight=weight,
        bias=randn(VOCABULARY),
        target=target,
        token_ids=torch.randperm(VOCABULARY, generator=g)[:TOKENS],
        token_weights=torch.rand(TOKENS, generator=g) + 0.1,
        step=torch.arange(rows) % 6,
        full=randn(rows, WIDTH),
        post=randn(rows, WIDTH),
        other=randn(VOCABULARY, WIDTH, scale=2 * WIDTH**-0.5),
        row_weight=torch.rand(rows, generator=g),
    )


class Case(NamedTuple):
    """A call of an op."""

    op: str
    options: dict[str, Any]
    reference: str = ""
    """states or logits, where there is one."""
    dtype: torch.dtype = torch.float32
    sure: bool = False


CE, LSE, KL, LOSS = "linear_cross_entropy", "linear_logsumexp", "pact_kl", "pact_loss"
CASES = {
    "ce": Case(CE, {}),
    "ce all": Case(
        CE, {"label_smoothing": 0.1, "z_loss": 1e-2, "logit_scale": 0.7, "num_items": 31}
    ),
    "ce soft cap": Case(CE, {"softcap": 3.0, "reduction": "sum"}),
    "ce rows": Case(CE, {"reduction": "none"}),
    "ce fp64": Case(CE, {}, dtype=torch.float64),
    "ce bf16": Case(CE, {}, dtype=torch.bfloat16),
    "ce sure bf16": Case(CE, {}, dtype=torch.bfloat16, sure=True),
    "lse": Case(LSE, {"softcap": 3.0}),
    "kl states": Case(KL, {}, "states"),
    "kl logits": Case(KL, {"gate": None, "reduction": "none"}, "logits"),
    "kl vocabulary": Case(KL, {"over": "vocabulary", "softcap": 3.0}, "states"),
    "kl vocabulary logits": Case(KL, {"over": "vocabulary", "gate": None}, "logits"),
    "loss": Case(LOSS, {"kl_weight": 3.0}, "states"),
    "loss vocabulary": Case(LOSS, {"over": "vocabulary", "kl_weight": 3.0}, "states"),
    "loss rows": Case(LOSS, {"reduction": "none", "z_loss": 1e-2}, "logits"),
    "loss bf16": Case(LOSS, {"over": "vocabulary"}, "logits", torch.bfloat16),
}


def sizes(processes: int) -> list[int]:
    """Uneven parts of the vocabulary."""
    first = [VOCABULARY // processes + 3 * n - 2 for n in range(processes - 1)]
    return [*first, VOCABULARY - sum(first)]


def run(
    case: Case,
    rank: int = 0,
    processes: int = 1,
    group: Any = None,
    *,
    in_float64: bool = False,  # the same numbers
) -> dict[str, Tensor]:
    """Values, and gradients of this process's part."""
    p = problem(case.dtype, sure=case.sure)
    if in_float64:
        p = Problem(*(t.double() if t.is_floating_point() else t for t in p))
    parts = sizes(processes)
    own = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
    hidden = p.hidden.clone().requires_grad_()
    weight = p.weight[own].clone().requires_grad_()
    bias = p.bias[own].clone().requires_grad_()
    options: dict[str, Any] = {**case.options, "bias": bias}
    if group is not None:
        options["process_group"] = group
    reference: Any = None
    if case.reference == "states":
        reference = pk.ReferenceStates(p.full, p.post, p.other[own])
    elif case.reference == "logits":
        lse = [pk.linear_logsumexp(s, p.other, bias=p.bias) for s in (p.full, p.post)]
        logits = [
            pk.selected_logits(s, p.other, p.token_ids, bias=p.bias) for s in (p.full, p.post)
        ]
        reference = pk.ReferenceLogits(*logits, *lse)
    kl = (p.token_ids, p.token_weights, p.step, reference)
    if case.reference:
        options["row_weight"] = p.row_weight
    kept = p.target != -100
    if case.op == LSE:
        values = (pk.linear_logsumexp(hidden, weight, **options),)
    elif case.op == CE:
        values = (pk.linear_cross_entropy(hidden, weight, p.target, **options),)
    elif case.op == KL:
        values = (pk.pact_kl(hidden[kept], weight, *kl, **options),)
    else:
        values = tuple(pk.pact_loss(hidden, weight, p.target, *kl, **options))
    g = torch.Generator().manual_seed(1)
    upstream = torch.rand(values[0].shape, generator=g).to(values[0].dtype)
    (values[0] * upstream).sum().backward()
    found = {f"value {n}": value.detach() for n, value in enumerate(values)}
    for name, leaf in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        found[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return found


def main(folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        with counted() as calls:
            found[name] = run(case, rank, processes, group)
        found[name]["collectives"] = torch.tensor(calls)
    mesh = init_device_mesh("cpu", (processes,))
    p = problem(torch.float32)
    weight = distribute_tensor(p.weight, mesh, [Shard(0)]).requires_grad_()
    hidden = p.hidden.clone().requires_grad_()
    loss = pk.linear_cross_entropy(hidden, weight, p.target, process_group=mesh.get_group())
    loss.backward()
    assert weight.grad is not None and hidden.grad is not None
    found["dtensor"] = {
        "value 0": loss.detach(),
        "hidden": hidden.grad,
        "weight": weight.grad.full_tensor(),  # type: ignore[attr-defined]
    }
    found["refused"] = refusals(p, weight, group)
    torch.save(found, folder / f"{processes}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class counted:
    """How many all-reduces run within."""

    def __enter__(self) -> list[int]:
        self.calls, self.own = [0], dist.all_reduce

        def all_reduce(*args: Any, **kwargs: Any) -> Any:
            self.calls[0] += 1
            return self.own(*args, **kwargs)

        dist.all_reduce = all_reduce
        return self.calls

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self.own


def refusals(p: Problem, weight: Tensor, group: Any) -> list[str]:
    """What is said to calls that cannot be right."""
    from torch.distributed.tensor import Replicate

    def said(*args: Any, **options: Any) -> str:
        try:
            pk.linear_cross_entropy(p.hidden, *args, process_group=group, **options)
        except ValueError as error:
            return str(error)
        return "nothing"

    own = p.weight.tensor_split(dist.get_world_size())[dist.get_rank()]
    whole = weight.detach().redistribute(placements=[Replicate()])  # type: ignore[attr-defined]
    return [
        said(own, p.target + 40),
        said(own, p.target, label_smoothing=0.1, softcap=3.0),
        said(whole, p.target),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
