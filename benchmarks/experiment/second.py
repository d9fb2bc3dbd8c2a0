"""A second judge of the answers to harmful requests, which is no list of keywords."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.experiment.protocol import SecondJudge
from pact.data.conversation import Conversation, like
from pact.evaluation import Evaluation
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import Judge, JudgeOptions
from pact.evaluation.prompts import waiting

BY_KEYWORDS = "keyword"


def make_second(chosen: SecondJudge | None, batch_size: int) -> Judge | None:
    """The judge that the protocol names, if it names one.

    Raises:
        ValueError: it is the keyword judge, which is asked anyway; or there is none of that name.
    """
    if chosen is None:
        return None
    if chosen.name == BY_KEYWORDS:
        raise ValueError(
            "the second judge must be another than the keyword judge, which is asked anyway: give "
            "classifier:PATH or guard:PATH"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = JudgeOptions(
        refusal_label=chosen.refusal_label, batch_size=batch_size, device=device, progress=False
    )
    return make_judge(chosen.name, options)


def second_counts(
    name: str, judge: Judge | None, asked: Sequence[Conversation], evaluation: Evaluation
) -> dict[str, tuple[int, int]]:
    """What a second judge counts in answers that the first one has judged.

    Args:
        name: of the set of requests.
        judge: the second one; None counts nothing.
        asked: the requests, in the order of their answers.
        evaluation: with the answers and the first judge's verdicts.

    Returns:
        `<name>_second`, refusals as the second judge has them, and `<name>_agree`, answers on which
        both say the same about their beginning: each (yes, n).
    """
    if judge is None:
        return {}
    given = [answer for answer in evaluation.generations if answer.set == "harmful"]
    verdicts = judge([_request(turns) for turns in asked], [one.answer for one in given])
    pairs = [
        (bool(one.verdict["starts_with_refusal"]), verdict.starts_with_refusal)
        for one, verdict in zip(given, verdicts, strict=True)
    ]
    return {
        f"{name}_second": (sum(second for _, second in pairs), len(pairs)),
        f"{name}_agree": (sum(first == second for first, second in pairs), len(pairs)),
    }


def _request(turns: Conversation) -> Conversation:
    """Without its answer, and without a system turn, for which guards' templates have no place."""
    return like(turns, [turn for turn in waiting(turns) if turn["role"] != "system"])
