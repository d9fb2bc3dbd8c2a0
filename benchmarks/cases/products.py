"""The matrix products that an op cannot do without, and their flops.

Every implementation's speed is stated in these flops, whatever it does beside them.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, C columns, V or K.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.cases.case import Case


class Products(NamedTuple):
    """The products of all rows with C columns of the head; 2 N D C flops each."""

    columns: int
    """C: V, or K where the selected rows of the head are enough."""
    logits: int
    """How many (N, D) x (D, C)."""
    states: int = 0
    """How many (N, C) x (C, D), for the gradient by the states."""
    weights: int = 0
    """How many (C, N) x (N, D), for the gradient by the head."""

    @property
    def number(self) -> int:
        return self.logits + self.states + self.weights


def minimal_products(case: Case) -> tuple[Products, ...]:
    """What the op's formula needs, with no logit formed twice and prompts left out.

    A trained op forms its logits and the gradient by the states, and by a head that is trained.
    A reference that comes as states costs its own logits, one product for each context: over the
    vocabulary with all V, since its log-sum-exp is needed, over the selection with K.
    The gathering of K selected logits out of V is no product, nor is what a second pass repeats.
    """
    wide, narrow = case.vocabulary, case.tokens
    trained = int(case.trainable_head)
    if case.op == "token_scores":
        return (Products(wide, logits=2),)
    if case.op == "linear_logsumexp":
        return (Products(wide, logits=1),)
    if case.op == "selected_confidences":
        return (Products(wide if case.over == "vocabulary" else narrow, logits=1),)
    if case.op == "linear_cross_entropy":
        return (Products(wide, 1, 1, trained),)
    contexts = 0 if case.cached else 1 + int(case.gated)
    if case.over == "vocabulary":
        return (Products(wide, 1 + contexts, 1, trained),)
    if case.op == "pact_kl":
        return (Products(narrow, 1 + contexts, 1, trained),)
    head = Products(wide, 1, 1, trained)
    return (head, Products(narrow, contexts)) if contexts else (head,)


def flops(case: Case) -> int:
    """Multiplications and additions of `minimal_products`."""
    return sum(
        2 * case.rows * case.hidden * each.columns * each.number for each in minimal_products(case)
    )
