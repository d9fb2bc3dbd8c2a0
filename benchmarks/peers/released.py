"""The released PACT step's head part: three full-vocabulary products on every position.

It is the baseline of `pact_loss` beyond its own objective too: what the released step costs is what
a user leaves, whichever objective comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.peer import Call, Setting
from benchmarks.released import Batch, released_loss
from pact_kernels import GateConfig


class Released:
    """Rows: all positions, prompts included, as the released code has it."""

    name = "released"
    ops = ("pact_loss",)

    def version(self) -> str | None:
        return torch.__version__

    def other_objective(self, case: Case) -> str | None:
        if case.over == "selection":
            return None
        return "matches confidences over the selection; the case's are over the vocabulary"

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        if case.op not in self.ops:
            return f"it has no {case.op}"
        return None if case.gated else "the released step always has its gate"

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        batch, gate = released_batch(case, inputs), GateConfig()
        shape = batch.reference_full.shape

        def forward() -> dict[str, torch.Tensor]:
            hidden = inputs.hidden.view(shape)
            return {"loss": released_loss(batch._replace(hidden=hidden), gate)}

        return make_call(case, inputs, forward)


def released_batch(case: Case, inputs: Inputs) -> Batch:
    """Views of a case's tensors: its sequences are the batch, its answers the post-only inputs."""
    sequences, length, width = case.sequences, case.length, case.hidden
    return Batch(
        hidden=inputs.hidden.view(sequences, length, width),
        weight=inputs.weight,
        target=inputs.target.view(sequences, length),
        reference_full=inputs.reference_hidden.view(sequences, length, width),
        reference_post=inputs.reference_post.view(sequences, length - case.prompt_length, width),
        reference_weight=inputs.reference_weight,
        post_rows=torch.arange(case.rows, device=inputs.hidden.device),
        step=inputs.step,
        token_ids=inputs.token_ids,
        token_weights=inputs.token_weights,
    )
