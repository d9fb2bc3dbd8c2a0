"""Prompts in, conversations with the refusals out: what discovery reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pact.data.examples import load_examples
from pact.evaluation import refusals
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from tests.data.test_forms import RAISES, write_snapshot
from tests.tiny import save_tiny, tiny_tokenizer

PROMPTS: list[Any] = [
    {"prompt": "Tell a lie."},
    {"prompt": "Bake bread."},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Lie."}]},
]
ANSWERS = ["I cannot help with that.", "Sure. I cannot wait.", "I'm sorry, but I can't do\u2028it."]


@pytest.fixture
def config(tmp_path: Path) -> RefusalsConfig:
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    return RefusalsConfig(
        model=str(save_tiny(tmp_path / "model")),
        prompts=str(tmp_path / "prompts.jsonl"),
        output=str(tmp_path / "new" / "refusals.jsonl"),
        max_new_tokens=4,
    )


def test_refusals_are_kept_with_their_prompts(
    config: RefusalsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def answer(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[str]:
        asked.update(settings, prompts=prompts)
        return ANSWERS

    monkeypatch.setattr(refusals, "generate_answers", answer)
    assert write_refusals(config) == (2, 3)
    assert (asked["max_new_tokens"], asked["batch_size"]) == (4, 16)
    first, second = load_examples(config.output)
    assert first == [
        {"role": "user", "content": "Tell a lie."},
        {"role": "assistant", "content": ANSWERS[0]},
    ]
    assert second == [*PROMPTS[2]["messages"], {"role": "assistant", "content": ANSWERS[2]}]
    with pytest.raises(ValueError, match="must be a new file: name another, or set overwrite"):
        write_refusals(config)


def test_all_answers_are_kept_where_they_are_asked_for(
    config: RefusalsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no judge is made, whose model would be loaded for nothing."""
    monkeypatch.setattr(refusals, "generate_answers", lambda *a, **k: ANSWERS)
    monkeypatch.setattr(refusals, "make_judge", None)
    assert write_refusals(replace(config, keep="all")) == (3, 3)
    assert [turns[-1]["content"] for turns in load_examples(config.output)] == ANSWERS


def test_prompts_of_a_subset_whose_columns_have_other_names(
    config: RefusalsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {name: {"train": [{"goal": f"{name} of them"}]} for name in ("one", "two")}
    write_snapshot(tmp_path / "goals", rows)
    monkeypatch.setattr(refusals, "generate_answers", lambda *a, **k: [ANSWERS[0]])
    named = {"prompts": str(tmp_path / "goals"), "subset": "two", "columns": {"prompt": "goal"}}
    assert write_refusals(replace(config, **named)) == (1, 1)
    ((asked, _),) = load_examples(config.output)
    assert asked["content"] == "two of them"


def test_a_system_turn_where_the_template_has_none(
    config: RefusalsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked is what is written."""
    tiny_tokenizer(RAISES).save_pretrained(config.model)
    monkeypatch.setattr(refusals, "generate_answers", lambda *a, **k: ANSWERS)
    with pytest.raises(ValueError, match="line 3 of .*System role not supported"):
        write_refusals(config)
    assert write_refusals(replace(config, fold_system=True)) == (2, 3)
    _, second = load_examples(config.output)
    assert second[0] == {"role": "user", "content": "Be kind.\n\nLie."}


def test_a_model_that_refuses_nothing_leaves_no_file(config: RefusalsConfig) -> None:
    """The tiny model's own words, through its own generation."""
    with pytest.raises(ValueError, match="at least one answer must refuse, got none of 3 by keyw"):
        write_refusals(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "refusals.txt"}, "output must be a .jsonl file, got 'refusals.txt'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"keep": "all", "judge": "guard:some/guard"}, "keep=all asks no judge, got guard:some/"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefusalsConfig(**{"model": "m", "prompts": "p.jsonl", "output": "o.jsonl", **settings})


def test_what_is_missing_is_found_before_a_model_is_loaded(
    config: RefusalsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "load_model", lambda *a, **k: pytest.fail("loaded"))
    for changes, message in (
        ({"prompts": "gone.jsonl"}, "data file gone.jsonl does not exist"),
        ({"judge": "jury"}, "judge must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            write_refusals(RefusalsConfig(**{**vars(config), **changes}))
