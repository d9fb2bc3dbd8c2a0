"""The PACT objective: cross-entropy plus the pull on the safety tokens.

Legend: N rows, D hidden size, V vocabulary, K safety tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import pact_kernels as pk
from pact.objective.config import PactConfig
from pact.objective.cross_entropy import CrossEntropy
from pact.objective.margin import with_margin
from pact_kernels.types import Head


class PactObjective:
    """An `Objective`: mean cross-entropy + kl_weight * mean KL to the reference's target.

    Args:
        token_ids: (K,) int64, the safety tokens.
        token_weights: (K,) their weights. With `positive_only` the tokens of other weights are left
            out; beyond that they count for over="selection" alone, by their positive parts.
        config: the objective's settings.
    """

    def __init__(self, token_ids: Tensor, token_weights: Tensor, config: PactConfig) -> None:
        if token_ids.numel() == 0:
            raise ValueError(
                "token_ids must hold at least one safety token, got none: run `pact discover`"
            )
        if config.settled.positive_only:
            positive = token_weights > 0
            if not bool(positive.any()):
                raise ValueError(
                    "with positive_only at least one safety token must have a positive weight, got "
                    f"none of {token_ids.numel()}: run `pact discover` anew, or turn it off"
                )
            token_ids, token_weights = token_ids[positive], token_weights[positive]
        self.token_ids = token_ids
        self.token_weights = token_weights
        self.config = config
        self.needs_reference = True
        self.needs_post_only = config.settled.gate

    @staticmethod
    def plain() -> CrossEntropy:
        """Cross-entropy alone: ordinary fine-tuning."""
        return CrossEntropy()

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates | None,
        *,
        num_items: int | Tensor | None = None,
        learnt: Tensor | None = None,
        held: Tensor | None = None,
    ) -> pk.PactLoss:
        """Loss of N answer rows.

        Args:
            hidden: (N, D) the student's states that predict the rows' tokens.
            head: the student's output head.
            target: (N,) int64, the tokens to predict.
            step: (N,) int64, each row's step within its answer.
            reference: the frozen model's states or cached logits of the same rows; with
                `anchors_only` those of `held`, and None where there are none.
            num_items: denominator of all means: the learnt rows of the whole optimiser step, of one
                of anchors alone its rows. None is those of the batch.
            learnt: (N',) int64, rows with a token to predict; None is all.
            held: (N - N',) int64, rows of anchors: they have the KL alone, at every step alike and
                without a margin. With `anchors_only` no other row has one.
        """
        settled, alone = self.config.settled, self.config.anchors_only
        if alone and (held is None or learnt is None or held.numel() == 0):
            return self.plain()(hidden, head, target, step, num_items=num_items)
        if reference is None:
            raise ValueError("this objective needs the reference of the batch, got None")
        if held is None or learnt is None:
            return self._loss(hidden, head, target, step, reference, num_items)
        count: int | Tensor = learnt.numel() or held.numel() if num_items is None else num_items
        rows = hidden[learnt], head, target[learnt], step[learnt]
        if alone:
            loss = self.plain()(*rows, num_items=count)
        else:
            loss = self._loss(*rows, _of_rows(reference, learnt), count)
        kl = pk.pact_kl(
            hidden[held],
            head.weight,
            self.token_ids.to(hidden.device),
            self.token_weights.to(hidden.device),
            step[held],
            reference if alone else _of_rows(reference, held),
            gate=self.config.gate_config(),
            temperature=self.config.kl_temperature,
            over=self.config.over,
            num_items=count,
            **head.options,
        )
        return loss._replace(loss=loss.loss + settled.kl_weight * kl, kl=loss.kl + kl.detach())

    def _loss(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates,
        num_items: int | Tensor | None,
    ) -> pk.PactLoss:
        """The loss of rows that are learnt and held."""
        device, settled = hidden.device, self.config.settled
        tau = settled.kl_step_tau
        row_weight = None if tau == math.inf else torch.exp(step / -tau)  # (N,)
        token_ids = self.token_ids.to(device)
        if settled.kl_margin:
            reference = with_margin(reference, head, token_ids, settled.kl_margin)
        return pk.pact_loss(
            hidden,
            head.weight,
            target,
            token_ids,
            self.token_weights.to(device),
            step,
            reference,
            kl_weight=settled.kl_weight,
            gate=self.config.gate_config(),
            temperature=self.config.kl_temperature,
            over=self.config.over,
            row_weight=row_weight,
            num_items=num_items,
            **head.options,
        )


def holds_anchors_only(objective: Any) -> bool:
    """Whether nothing but anchors is held, so that other rows need no reference."""
    return isinstance(objective, PactObjective) and objective.config.anchors_only


def _of_rows(
    reference: pk.ReferenceLogits | pk.ReferenceStates, rows: Tensor
) -> pk.ReferenceLogits | pk.ReferenceStates:
    """The reference of some rows."""

    def some(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    if isinstance(reference, pk.ReferenceStates):
        full, post = reference.full_hidden[rows], some(reference.post_hidden)
        return reference._replace(full_hidden=full, post_hidden=post)
    return pk.ReferenceLogits(
        reference.full[rows],
        some(reference.post),
        some(reference.full_lse),
        some(reference.post_lse),
    )
