"""Which sample a row of token_scores belongs to: each sequence of a case is one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs


def samples(case: Case, inputs: Inputs) -> Tensor:
    """(N,) int64."""
    each = case.length - case.prompt_length
    return torch.arange(case.sequences, device=inputs.target.device).repeat_interleave(each)
