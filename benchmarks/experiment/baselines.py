"""The objectives that PACT is compared with, for the same loop: `pact.training.loop.fit`.

    full_vocabulary_kl   cross-entropy + the KL to the reference over the whole vocabulary
    first_tokens         cross-entropy whose first answer tokens are held back (Qi et al. 2025)
    token_logits         cross-entropy + the squared change of some tokens' logits (Bach, Tran 2026)

Each gives the rows of `Held`, whose loss is mean_n CE_n + weight mean_n held_n.

All read the live reference's states on the full context, never a cache and never the post-only
input. Every row they are given counts. What is more than an objective is in `rivals`.

Legend: N answer rows, D hidden size, V vocabulary, K held tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

import pact_kernels as pk
from pact_kernels.common.reduction import mean_of
from pact_kernels.naive.logits import logits
from pact_kernels.ops._checks.arguments import autocast_inputs
from pact_kernels.ops._operators.references import in_one_dtype
from pact_kernels.types import Head

States: TypeAlias = tuple[Tensor, Head]
"""(N, D) the states of a model that predict the rows' tokens, and its head."""
Rows: TypeAlias = tuple[Tensor, Tensor]
"""(N,) the student's cross-entropies, and (N,) what holds them."""
PAPER_BETAS = (0.5, 2.0, 2.0, 2.0, 2.0)
"""Strengths of Qi et al. for the answer steps 0 to 4."""
PAPER_LATER_BETA = 0.1
"""Their strength for every step after these."""
REFUSAL_TEMPLATES = (
    "I'm sorry, but I can't",
    "I'm sorry, but I cannot",
    "I cannot help with that",
    "I can't assist with that",
    "I am unable to",
    "I won't",
    "I must decline",
    "Unfortunately, I cannot",
    "No,",
)
"""Openings of refusals, as chat models word them."""


class Held:
    """An `Objective` that needs the frozen model's states, and no other context.

    Args:
        rows: gives the student's cross-entropies (N,), and by what each row is held (N,).
        weight: of the latter beside the cross-entropy, at least 0; None where they are the loss.
    """

    needs_reference = True
    needs_post_only = False

    def __init__(self, rows: Callable[..., Rows], weight: float | None = None) -> None:
        assert weight is None or 0 <= weight < math.inf, weight
        self.rows = rows
        self.weight = weight

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates | None,
        *,
        num_items: int | Tensor | None = None,
    ) -> pk.PactLoss:
        """Loss of N answer rows, from what an `Objective` is given.

        Returns:
            PactLoss, of which `loss` alone has a gradient, and none reaches the reference:
            `cross_entropy` is the plain mean; `kl` is the mean of what holds, before its weight,
            and 0 where that is the loss; `mean_gate` is 0.
        """
        assert isinstance(reference, pk.ReferenceStates), "the bench has no cache"
        frozen = _frozen(reference, head)
        ce, held = (
            mean_of(rows.sum(), target.numel(), num_items)
            for rows in self.rows((hidden, head), frozen, target, step)
        )
        zero = torch.zeros((), device=ce.device)
        loss, kl = (held, zero) if self.weight is None else (ce + self.weight * held, held.detach())
        count = torch.full((), target.numel(), device=ce.device)
        return pk.PactLoss(loss, ce.detach(), kl, count, zero)


def full_vocabulary_kl(student: States, frozen: States, target: Tensor, step: Tensor) -> Rows:
    """Cross-entropy, and the KL from the frozen model's distribution over the whole vocabulary.

        KL_n = sum_v P_ref(v) (log P_ref(v) - log P(v))

    at temperature 1, P the student's softmax in row n. It is what a pull on K safety tokens is to
    replace, written plainly: fp32 logits (N, V) of both models, and autograd.
    """
    log_p, log_reference = (_log_probabilities(*states) for states in (student, frozen))  # (N, V)
    kl_rows = (log_reference.exp() * (log_reference - log_p)).sum(-1)  # (N,)
    return -log_p.gather(-1, target[:, None])[:, 0], kl_rows


def first_tokens(
    student: States, frozen: States, target: Tensor, step: Tensor, *, strength: float
) -> Rows:
    """Fine-tuning that lets the first tokens of an answer move little from the frozen model.

        loss = mean_n -(2 / beta) log sigmoid(beta Delta_n),
        Delta_n = log P(y_n) - log P_ref(y_n),   beta by the answer step of row n

    y_n the target. Its gradient is that of the cross-entropy times 2 sigmoid(-beta Delta_n): 1
    where student and reference agree on y_n, towards 0 as the student grows surer of it, the faster
    the larger beta is; towards 2 as it grows less sure. As beta goes to 0 the factor goes to 1,
    which is plain fine-tuning. A row's loss is (2 / beta) log 2 where both agree, so its level is
    not comparable with a cross-entropy, which is reported beside it.

    Args:
        strength: factor on `PAPER_BETAS` and not on `PAPER_LATER_BETA`, for a trade-off curve;
            positive, 1 is the paper's.

    Source: Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025
    (arXiv 2406.05946), the constrained fine-tuning objective. There the loss is a sum over an
    answer; here it is a mean over the step's rows, as every objective of the loop.
    """
    ce_rows, frozen_rows = (_cross_entropy_rows(*states, target) for states in (student, frozen))
    delta = frozen_rows - ce_rows  # (N,) log P(y) - log P_ref(y)
    betas = delta.new_tensor([*(beta * strength for beta in PAPER_BETAS), PAPER_LATER_BETA])
    beta = betas[step.clamp(max=len(PAPER_BETAS))]  # (N,)
    return ce_rows, -2 / beta * functional.logsigmoid(beta * delta)


def token_logits(
    student: States, frozen: States, target: Tensor, step: Tensor, *, token_ids: Tensor
) -> Rows:
    """Cross-entropy, and the mean squared change of the logits of K tokens.

        (1 / K) sum_k (z_nk - z_ref_nk)^2

    z_nk the student's logit of token k in row n, z_ref_nk the frozen model's. Logits are no
    probabilities: a change of all of them alike costs, though the answers stay the same, and a
    token's probability moves where the others' logits do.

    Args:
        token_ids: (K,) int64, distinct: see `template_tokens`.

    Source: Bach and Tran, "Guardrails in Logit Space: Safety Token Regularization for LLM
    Alignment" (arXiv 2604.17210): it constrains the logits of salient tokens of an aligned model's
    rejection templates. Written from its abstract; which tokens are salient, and the form of the
    constraint, are this file's: all tokens of the templates, and a square.
    """
    ids = token_ids.to(target.device)
    z, frozen_z = (
        pk.selected_logits(hidden, head.weight, ids, **head.options)
        for hidden, head in (student, frozen)
    )  # (N, K)
    return _cross_entropy_rows(*student, target), (z - frozen_z).square().mean(-1)


def template_tokens(tokenizer: Any) -> Tensor:
    """(K,) int64, ascending: every token of `REFUSAL_TEMPLATES` as answers begin with them."""
    encoded = tokenizer(list(REFUSAL_TEMPLATES), add_special_tokens=False)["input_ids"]
    return torch.tensor(sorted({token for ids in encoded for token in ids}))


def _frozen(reference: pk.ReferenceStates, head: Head) -> States:
    """The reference's states (N, D) and its head, which shares the student's cap and scale."""
    states = in_one_dtype(reference)
    bias = head.bias if states.bias is None else states.bias
    frozen = head._replace(
        weight=states.weight.detach(), bias=None if bias is None else bias.detach()
    )
    return states.full_hidden.detach(), frozen


def _log_probabilities(hidden: Tensor, head: Head) -> Tensor:
    """(N, V) fp32, or fp64 for fp64 states; products are in autocast's dtype, as the ops' are."""
    hidden, head = autocast_inputs(hidden, head)
    return torch.log_softmax(logits(hidden, *head), dim=-1)


def _cross_entropy_rows(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    """(N,) -log P(target), by the op that `CrossEntropy` trains with."""
    return pk.linear_cross_entropy(hidden, head.weight, target, reduction="none", **head.options)
