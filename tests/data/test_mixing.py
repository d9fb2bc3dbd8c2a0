"""Shares of other conversations in a data set."""

from __future__ import annotations

import random

import pytest

from pact.data.mixing import draw_share, with_refusals


def chats(prefix: str, count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{prefix} {n}"}] for n in range(count)]


CHATS, REFUSALS = chats("chat", 18), chats("refusal", 6)


@pytest.mark.parametrize(
    ("share", "count"),
    [
        (0.0, 0),
        (0.1, 2),  # 2 of 20
        (0.12, 2),  # 2.45 is rounded
        (0.25, 6),  # all that there are
    ],
)
def test_the_share_is_of_all(share: float, count: int) -> None:
    mixed = with_refusals(CHATS, REFUSALS, share, seed=3)
    assert mixed[:18] == CHATS
    drawn = [turns[0]["content"] for turns in mixed[18:]]
    assert len(set(drawn)) == count  # none twice
    assert all(words.startswith("refusal") for words in drawn)


def test_the_seed_draws_and_a_larger_share_draws_on() -> None:
    few = with_refusals(CHATS, REFUSALS, 0.1, seed=0)
    assert few == with_refusals(CHATS, REFUSALS, 0.1, seed=0)
    assert with_refusals(CHATS, REFUSALS, 0.2, seed=0)[: len(few)] == few
    assert len({str(with_refusals(CHATS, REFUSALS, 0.1, seed)[18:]) for seed in range(5)}) > 1


@pytest.mark.parametrize("share", [-0.1, 0.3, 1.0])  # 8 of 26 would be needed for 0.3
def test_a_share_that_cannot_be_had_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"refusal_share .*at most 0\.250, got {share}.*lower"):
        with_refusals(CHATS, REFUSALS, share, seed=0)
    with pytest.raises(ValueError, match="harmful_share .*at most 0.000"):
        draw_share([], 0.1, 18, random.Random(0), name="harmful_share")
