"""The ops' random problem for losses, in values that fp32 or less holds.

Both sides of a comparison then get equal inputs, and only the arithmetic differs.
"""

from __future__ import annotations

from typing import Any

import torch

import pact_kernels as pk
from tests.ops.precision import near_a_jump
from tests.ops.problem import Problem, problem


def rounded(dtype: torch.dtype = torch.float32, **sizes: Any) -> Problem:
    """A problem in float64 whose values `dtype` holds, no row of it near a jump of its counts.

    The reference has a bias of its own.
    """
    p = problem(**sizes)
    for name in ("hidden", "weight", "bias", "token_weights"):
        setattr(p, name, getattr(p, name).to(dtype).double())
    p.row_weight = p.row_weight.float()
    p.states = pk.ReferenceStates(*(t.to(dtype).double() for t in p.states[:3]), p.bias.flip(0))
    _, post, head, bias = p.states
    assert post is not None and bias is not None
    kept = p.target != -100
    student = p.hidden[kept] @ p.weight[p.token_ids].T + p.bias[p.token_ids]
    other = post @ head[p.token_ids].T + bias[p.token_ids]
    gate = pk.GateConfig()
    assert not (near_a_jump(student, gate) | near_a_jump(other, gate)).any()
    return p
