"""How far an answer is from opening with a refusal, against the words that the fine-tuning teaches.

Legend: N answers, K safety tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import pact_kernels as pk
from pact.data.examples import Conversation
from pact.discovery import SafetyTokens
from pact.evaluation.inference import answer_batches, looking_at
from pact.models import output_head


def opening_odds(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    tokens: SafetyTokens,
    rival: str,
    *,
    batch_size: int,
) -> float:
    """Mean log-odds of the safety tokens together against a rival, at the first token of an answer.

        mean_n (log sum_s exp z_ns - z_n,rival)

    No log-sum-exp over the vocabulary is needed. Where fine-tuning shifts the rival's logit alike
    for all prompts, this falls by as much on harmful requests as on harmless ones.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        conversations: that end with an answer.
        tokens: those of positive weight count.
        rival: words whose first token is compared.
        batch_size: conversations in a forward pass.

    Returns:
        The mean, in nats: positive where a refusal is the likelier opening.
    """
    head = output_head(model)
    openings = tokens.ids[tokens.weights > 0].tolist()
    first = tokenizer(rival, add_special_tokens=False)["input_ids"][0]
    ids = torch.tensor([*(token for token in openings if token != first), first])
    odds = []
    with looking_at(model):
        for batch in answer_batches(
            model,
            tokenizer,
            conversations,
            batch_size=batch_size,
            max_length=None,
            title="openings",
            progress=False,
        ):
            hidden = batch.hidden[batch.inputs["row_step"] == 0]  # (N, D)
            z = pk.selected_logits(hidden, head.weight, ids.to(hidden.device), **head.options)
            odds.append(z[:, :-1].logsumexp(-1) - z[:, -1])  # (N,)
    return torch.cat(odds).mean().item()
