"""Mix a share of other conversations into a data set."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pact.data.examples import Conversation


def draw_share(
    pool: Sequence[Conversation], share: float, num_others: int, stream: random.Random, *, name: str
) -> list[Conversation]:
    """As many of `pool` as are `share` of themselves and `num_others` others.

        count = round(num_others share / (1 - share))

    What a larger share draws with the same stream holds what a smaller one draws.

    Args:
        pool: conversations to draw from, each once at most.
        share: in [0, 1).
        num_others: conversations that they will join.
        stream: of random numbers.
        name: of the share, for the error.

    Raises:
        ValueError: the pool is too small for the share, or the share is none.
    """
    most = len(pool) / (len(pool) + num_others) if pool else 0.0
    count = round(num_others * share / (1.0 - share)) if 0.0 <= share < 1.0 else -1
    if not 0 <= count <= len(pool):
        raise ValueError(
            f"{name} must be at least 0 and at most {most:.3f}, got {share}: there are {len(pool)} "
            f"conversations to draw from beside {num_others} others; lower the share"
        )
    return stream.sample(pool, len(pool))[:count]


def with_refusals(
    conversations: Sequence[Conversation],
    refusals: Sequence[Conversation],
    share: float,
    seed: int,
) -> list[Conversation]:
    """The conversations, then refusals drawn by the seed so that these are `share` of all.

    Raises:
        ValueError: there are too few refusals for the share.
    """
    stream = random.Random(f"refusals {seed}")
    drawn = draw_share(refusals, share, len(conversations), stream, name="refusal_share")
    return [*conversations, *drawn]
