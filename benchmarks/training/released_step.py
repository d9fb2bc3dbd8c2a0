"""The loss of a whole released PACT step: a second model, two live forwards, full logits.

The student's backbone on the batch, the frozen model's on the batch and on the post-only inputs;
then the head part of `benchmarks.peers.released`, with every position's logits.

Legend: B sequences, L positions, N answer rows, A answers, P positions of a post-only line, D
hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.released import Batch, released_loss
from pact.data.spans import IGNORE
from pact.models import hidden_states, output_head
from pact_kernels import GateConfig


def released_step_loss(
    student: Any,
    frozen: Any,
    batch: Mapping[str, Tensor],
    token_ids: Tensor,
    token_weights: Tensor,
    gate: GateConfig,
) -> Tensor:
    """Cross-entropy + KL of a collated batch, both means over its answer rows.

    Args:
        student: the model that is trained.
        frozen: the aligned model, a second one in memory.
        batch: as `pact.data.collate.Collator` makes it, with post-only inputs.
        token_ids: (K,)
        token_weights: (K,)
        gate: of the mixture of both references.

    Raises:
        ValueError: the head is more than a matrix.
    """
    head, frozen_head = output_head(student), output_head(frozen)
    if head.bias is not None or head.softcap is not None or head.logit_scale != 1.0:
        raise ValueError(
            "the released side needs a head that is a matrix alone, got one with a bias, a soft "
            "cap or a logit scale: choose another model"
        )
    post_length = batch["post_input_ids"].shape[1]
    hidden = hidden_states(student, batch["input_ids"], batch["attention_mask"])  # (B, L, D)
    with torch.no_grad():
        full = hidden_states(frozen, batch["input_ids"], batch["attention_mask"])  # (B, L, D)
        post = hidden_states(
            frozen, batch["post_input_ids"], batch["post_attention_mask"]
        )  # (A, P, D)
    return released_loss(
        Batch(
            hidden=hidden,
            weight=head.weight,
            target=functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE),
            reference_full=full,
            reference_post=post,
            reference_weight=frozen_head.weight,
            post_rows=batch["post_sequence"] * post_length + batch["post_position"],
            step=batch["row_step"],
            token_ids=token_ids,
            token_weights=token_weights,
        ),
        gate,
    )
