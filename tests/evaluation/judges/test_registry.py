from __future__ import annotations

from collections.abc import Sequence

import pytest

from pact.data.examples import Conversation
from pact.evaluation.judges import registry
from pact.evaluation.judges.verdict import Judge, JudgeOptions, Verdict


def starts_with(word: str, options: JudgeOptions) -> Judge:
    def judge(prompts: Sequence[Conversation], answers: Sequence[str]) -> list[Verdict]:
        return [Verdict(a.startswith(word), word in a) for a in answers]

    return judge


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_a_registered_judge_is_found_with_its_argument() -> None:
    registry.register_judge("starts", starts_with)
    judge = registry.make_judge("starts:a:b", JudgeOptions())  # the first colon alone cuts
    assert judge([], ["a:b c", "c a:b"]) == [Verdict(True, True), Verdict(False, True)]


@pytest.mark.parametrize("name", ["keyword", "", "a:b"])
def test_a_judge_needs_a_new_name_without_colon(name: str) -> None:
    with pytest.raises(ValueError, match="must be new and without a colon"):
        registry.register_judge(name, starts_with)


def test_an_unknown_judge_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'classifier', 'guard', 'keyword'.*got 'keywords'"):
        registry.make_judge("keywords", JudgeOptions())
