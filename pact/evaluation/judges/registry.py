"""Judges by name: `keyword`, `classifier:PATH`, `guard:PATH`, and those that users add."""

from __future__ import annotations

from pact.evaluation.judges.classifier import ClassifierJudge
from pact.evaluation.judges.guard import GuardJudge
from pact.evaluation.judges.keyword import keyword_judge
from pact.evaluation.judges.verdict import Judge, JudgeFactory, JudgeOptions


def register_judge(name: str, factory: JudgeFactory) -> None:
    """Make a judge available as `name` or `name:argument`.

    Args:
        name: free, and without a colon.
        factory: called with the argument, which may be empty, and the options. What it can check it
            checks there, before any model is loaded; its own model it best loads at its first call.
    """
    if not name or ":" in name or name in _FACTORIES:
        raise ValueError(
            f"a judge's name must be new and without a colon, got {name!r} beside "
            f"{sorted(_FACTORIES)}"
        )
    _FACTORIES[name] = factory


def make_judge(spec: str, options: JudgeOptions) -> Judge:
    """The judge that `spec` names, checked as far as that is possible without loading its model.

    Raises:
        ValueError: no judge has that name, or its argument or options do not fit.
    """
    name, _, argument = spec.partition(":")
    if name not in _FACTORIES:
        raise ValueError(f"judge must be one of {sorted(_FACTORIES)}, or NAME:PATH, got {spec!r}")
    return _FACTORIES[name](argument, options)


_FACTORIES: dict[str, JudgeFactory] = {
    "keyword": keyword_judge,
    "classifier": ClassifierJudge,
    "guard": GuardJudge,
}
