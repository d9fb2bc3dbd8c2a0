"""The objectives that PACT is compared with, for the same loop: `pact.training.loop.fit`.

    FullVocabularyKl   cross-entropy + the KL to the reference over the whole vocabulary
    FirstTokens        cross-entropy whose first answer tokens are held back (Qi et al. 2025)
    TokenLogits        cross-entropy + the squared change of some tokens' logits (Bach, Tran 2026)

All read the live reference's states on the full context, never a cache and never the post-only
input. Every row they are given counts. What is more than an objective is in `rivals`.

Legend: N answer rows, D hidden size, V vocabulary, K held tokens, S steps with a beta of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import pact_kernels as pk
from pact.objective import PactConfig
from pact_kernels.common.reduction import mean_of
from pact_kernels.naive.logits import logits
from pact_kernels.ops._checks.arguments import autocast_inputs
from pact_kernels.ops._operators.references import in_one_dtype
from pact_kernels.types import Head

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


class FullVocabularyKl:
    """Cross-entropy + the KL from the frozen model's distribution, over the whole vocabulary.

        loss = mean_n CE_n + kl_weight mean_n exp(-t_n / step_tau) KL_n
        KL_n = sum_v P_ref(v) (log P_ref(v) - log P(v))

    at temperature 1, P the student's softmax in row n and t_n the row's answer step. Without
    `step_tau` every step weighs 1. It is what a pull on K safety tokens is to replace, written
    plainly: fp32 logits (N, V) of both models, and autograd.

    Args:
        kl_weight: weight of the KL beside the cross-entropy, at least 0.
        step_tau: decay of the KL's weight, in answer steps; positive, or None.

    Raises:
        ValueError: a number is out of its range.

    Source: the textbook KL; the weight of the steps is `PactConfig.kl_step_tau`.
    """

    needs_reference = True
    needs_post_only = False

    def __init__(self, kl_weight: float, step_tau: float | None = None) -> None:
        # The same numbers as PACT's, so the same are refused.
        PactConfig(kl_weight=kl_weight, kl_step_tau=math.inf if step_tau is None else step_tau)
        self.kl_weight = kl_weight
        self.step_tau = step_tau

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
        """Loss of N answer rows.

        Args:
            hidden: (N, D) the student's states that predict the rows' tokens.
            head: the student's output head.
            target: (N,) int64, the tokens to predict.
            step: (N,) int64, each row's step within its answer.
            reference: the frozen model's states of the same rows; no gradient reaches them.
            num_items: denominator of both means, the rows of the whole optimiser step; None is N.

        Returns:
            PactLoss: `kl` is the weighted steps' mean, before kl_weight; `mean_gate` is 0.

        Raises:
            ValueError: the reference is None or a cache's logits.
        """
        frozen_hidden, frozen_head = _frozen(reference, head)
        log_p = _log_probabilities(hidden, head)  # (N, V)
        with torch.no_grad():
            log_reference = _log_probabilities(frozen_hidden, frozen_head)  # (N, V)
        ce_rows = -log_p.gather(-1, target[:, None])[:, 0]  # (N,)
        kl_rows = (log_reference.exp() * (log_reference - log_p)).sum(-1)  # (N,)
        if self.step_tau is not None:
            kl_rows = kl_rows * torch.exp(step / -self.step_tau)
        cross_entropy = mean_of(ce_rows.sum(), target.numel(), num_items)
        kl = mean_of(kl_rows.sum(), target.numel(), num_items)
        return _reported(cross_entropy + self.kl_weight * kl, cross_entropy, kl, target.numel())


class FirstTokens:
    """Fine-tuning that lets the first tokens of an answer move little from the frozen model.

        loss = mean_n -(2 / beta) log sigmoid(beta Delta_n),
        Delta_n = log P(y_n) - log P_ref(y_n),   beta by the answer step of row n

    y_n the target. Its gradient is that of the cross-entropy times 2 sigmoid(-beta Delta_n): 1
    where student and reference agree on y_n, towards 0 as the student grows surer of it, the faster
    the larger beta is; towards 2 as it grows less sure. As beta goes to 0 the factor goes to 1,
    which is plain fine-tuning. A row's loss is (2 / beta) log 2 where both agree, so its level is
    not comparable with a cross-entropy, which is reported beside it.

    Args:
        betas: S of them, for the answer steps 0 to S - 1; all positive. The default is the paper's.
        later_beta: for the steps from S on; positive. The default is the paper's.
        strength: factor on `betas` and not on `later_beta`, for a trade-off curve; positive, 1 is
            the paper's.

    Raises:
        ValueError: a number is not positive and finite.

    Source: Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025
    (arXiv 2406.05946), the constrained fine-tuning objective. There the loss is a sum over an
    answer; here it is a mean over the step's rows, as every objective of the loop.
    """

    needs_reference = True
    needs_post_only = False

    def __init__(
        self,
        betas: Sequence[float] = PAPER_BETAS,
        later_beta: float = PAPER_LATER_BETA,
        *,
        strength: float = 1.0,
    ) -> None:
        for name, value in (
            *((f"betas[{place}]", beta) for place, beta in enumerate(betas)),
            ("later_beta", later_beta),
            ("strength", strength),
        ):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(
                    f"{name} must be positive and finite, got {value}: for plain fine-tuning, the "
                    "limit of small betas, take CrossEntropy()"
                )
        self.betas = tuple(beta * strength for beta in betas) + (later_beta,)  # S + 1

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
        """Loss of N answer rows.

        Args:
            hidden: (N, D) the student's states that predict the rows' tokens.
            head: the student's output head.
            target: (N,) int64, the tokens to predict.
            step: (N,) int64, each row's step within its answer.
            reference: the frozen model's states of the same rows; no gradient reaches them.
            num_items: denominator of the means, the rows of the whole optimiser step; None is N.

        Returns:
            PactLoss: `loss` is the constrained one, and is not cross_entropy + kl;
            `cross_entropy` is the plain mean, for reports; `kl` and `mean_gate` are 0.

        Raises:
            ValueError: the reference is None or a cache's logits.
        """
        frozen_hidden, frozen_head = _frozen(reference, head)
        ce_rows = _cross_entropy_rows(hidden, head, target)  # (N,)
        with torch.no_grad():
            frozen_rows = _cross_entropy_rows(frozen_hidden, frozen_head, target)  # (N,)
        delta = frozen_rows - ce_rows  # (N,) log P(y) - log P_ref(y)
        betas = delta.new_tensor(self.betas)  # (S + 1,)
        beta = betas[step.clamp(max=len(self.betas) - 1)]  # (N,)
        rows = -2 / beta * functional.logsigmoid(beta * delta)  # (N,)
        loss = mean_of(rows.sum(), target.numel(), num_items)
        cross_entropy = mean_of(ce_rows.sum(), target.numel(), num_items)
        return _reported(loss, cross_entropy, torch.zeros_like(loss), target.numel())


class TokenLogits:
    """Cross-entropy + the mean squared change of the logits of K tokens, at every answer row.

        loss = mean_n CE_n + weight mean_n (1 / K) sum_k (z_nk - z_ref_nk)^2

    z_nk the student's logit of token k in row n, z_ref_nk the frozen model's. Logits are no
    probabilities: a change of all of them alike costs, though the answers stay the same, and a
    token's probability moves where the others' logits do.

    Args:
        token_ids: (K,) int64, distinct: see `template_tokens`.
        weight: of the squares beside the cross-entropy; at least 0.

    Raises:
        ValueError: there are no tokens, or the weight is negative or not finite.

    Source: Bach and Tran, "Guardrails in Logit Space: Safety Token Regularization for LLM
    Alignment" (arXiv 2604.17210): it constrains the logits of salient tokens of an aligned model's
    rejection templates. Written from its abstract; which tokens are salient, and the form of the
    constraint, are this file's: all tokens of the templates, and a square.
    """

    needs_reference = True
    needs_post_only = False

    def __init__(self, token_ids: Tensor, weight: float) -> None:
        if token_ids.numel() == 0:
            raise ValueError("at least one token must be held, got none: give templates")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be at least 0 and finite, got {weight}")
        self.token_ids = token_ids
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
        """Loss of N answer rows.

        Args:
            hidden: (N, D) the student's states that predict the rows' tokens.
            head: the student's output head.
            target: (N,) int64, the tokens to predict.
            step: (N,) int64, each row's step within its answer; every step weighs the same.
            reference: the frozen model's states of the same rows; no gradient reaches them.
            num_items: denominator of both means, the rows of the whole optimiser step; None is N.

        Returns:
            PactLoss: `kl` is the mean square, before the weight; `mean_gate` is 0.

        Raises:
            ValueError: the reference is None or a cache's logits.
        """
        frozen_hidden, frozen_head = _frozen(reference, head)
        ids = self.token_ids.to(hidden.device)
        ce_rows = _cross_entropy_rows(hidden, head, target)  # (N,)
        z = pk.selected_logits(hidden, head.weight, ids, **head.options)  # (N, K)
        with torch.no_grad():
            frozen_z = pk.selected_logits(
                frozen_hidden, frozen_head.weight, ids, **frozen_head.options
            )  # (N, K)
        squares = (z - frozen_z).square().mean(-1)  # (N,)
        cross_entropy = mean_of(ce_rows.sum(), target.numel(), num_items)
        change = mean_of(squares.sum(), target.numel(), num_items)
        loss = cross_entropy + self.weight * change
        return _reported(loss, cross_entropy, change, target.numel())


def template_tokens(tokenizer: Any) -> Tensor:
    """(K,) int64, ascending: every token of `REFUSAL_TEMPLATES` as answers begin with them."""
    encoded = tokenizer(list(REFUSAL_TEMPLATES), add_special_tokens=False)["input_ids"]
    return torch.tensor(sorted({token for ids in encoded for token in ids}))


def _frozen(
    reference: pk.ReferenceLogits | pk.ReferenceStates | None, head: Head
) -> tuple[Tensor, Head]:
    """The reference's states (N, D) and its head, which shares the student's cap and scale."""
    if not isinstance(reference, pk.ReferenceStates):
        received = "None" if reference is None else "a cache's logits of a few tokens"
        raise ValueError(
            f"this objective needs the reference's hidden states, got {received}: use AdaptersOff "
            "or FrozenModel"
        )
    states = in_one_dtype(reference)
    bias = head.bias if states.bias is None else states.bias
    return states.full_hidden, head._replace(weight=states.weight, bias=bias)


def _log_probabilities(hidden: Tensor, head: Head) -> Tensor:
    """(N, V) fp32, or fp64 for fp64 states; products are in autocast's dtype, as the ops' are."""
    hidden, head = autocast_inputs(hidden, head)
    z = logits(hidden, *head)  # (N, V)
    return torch.log_softmax(z, dim=-1)


def _cross_entropy_rows(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    """(N,) -log P(target), by the op that `CrossEntropy` trains with."""
    return pk.linear_cross_entropy(hidden, head.weight, target, reduction="none", **head.options)


def _reported(loss: Tensor, cross_entropy: Tensor, kl: Tensor, rows: int) -> pk.PactLoss:
    """Only `loss` keeps its gradient."""
    return pk.PactLoss(
        loss,
        cross_entropy.detach(),
        kl.detach(),
        torch.full((), rows, device=loss.device),
        torch.zeros((), device=loss.device),
    )
