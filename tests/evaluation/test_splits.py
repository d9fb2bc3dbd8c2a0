"""Data by the split, the subset and the columns that are named, and the result says which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from pact.cli import main
from pact.discovery import DiscoverConfig, SafetyTokens, run_discover
from pact.evaluation import EvaluateConfig, run_evaluate
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from pact.evaluation.report import load_evaluation
from pact.training import TrainConfig, train
from tests.data.test_forms import RAISES, write_snapshot
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.problem import conversations

SOURCES = ("harmful", "benign", "heldout", "task", "drift")


@pytest.fixture
def parts(tmp_path: Path) -> str:
    """Two splits of unlike length."""
    rows = [{"messages": turns} for turns in conversations(5)]
    splits = {"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:2])}
    DatasetDict(splits).save_to_disk(tmp_path / "parts")
    SafetyTokens(torch.tensor([5, 6]), torch.ones(2)).save(tmp_path / "tokens.safetensors")
    save_tiny(tmp_path / "model")
    save_tiny(tmp_path / "base", seed=1)
    return str(tmp_path / "parts")


def evaluation(tmp_path: Path, source: str, path: str, **settings: Any) -> EvaluateConfig:
    own = {"tokens": str(tmp_path / "tokens.safetensors"), "reference": str(tmp_path / "base")}
    return EvaluateConfig(
        model=str(tmp_path / "model"),
        output_dir=str(tmp_path / "evaluated"),
        max_new_tokens=2,
        **{source: path},
        **(own if source == "drift" else {}),
        **settings,
    )


@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_reads_no_split_that_was_not_named(
    source: str, parts: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\], got split=None: na"):
        run_evaluate(evaluation(tmp_path, source, parts))
    result = run_evaluate(evaluation(tmp_path, source, parts, split="test"))
    assert result.settings["splits"] == {source: "test"}
    assert load_evaluation(tmp_path / "evaluated").settings["splits"] == {source: "test"}
    two = evaluation(tmp_path, source, write_rows(tmp_path / "two.jsonl", conversations(2)))
    alone = run_evaluate(replace(two, output_dir=str(tmp_path / "alone")))
    assert (alone.heldout, alone.task, alone.drift) == (result.heldout, result.task, result.drift)
    assert (alone.harmful, alone.benign) == (result.harmful, result.benign)
    assert "splits" not in alone.settings


@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_folds_a_system_turn_where_the_template_has_none(
    source: str, parts: str, tmp_path: Path
) -> None:
    """As if the user had said it; an error without the flag, before a model is loaded."""
    system, (user, answer) = {"role": "system", "content": "Be brief"}, conversations(2)[1][:2]
    tiny_tokenizer(RAISES).save_pretrained(tmp_path / "model")
    given = evaluation(tmp_path, source, write_rows(tmp_path / "a.jsonl", [[system, user, answer]]))
    with pytest.raises(ValueError, match="line 1 of .*System role not supported"):
        run_evaluate(given)
    result = run_evaluate(replace(given, fold_system=True))
    said = {**user, "content": f"Be brief\n\n{user['content']}"}
    same = evaluation(tmp_path, source, write_rows(tmp_path / "b.jsonl", [[said, answer]]))
    expected = run_evaluate(replace(same, output_dir=str(tmp_path / "said")))
    for name in SOURCES:
        assert getattr(result, name) == getattr(expected, name)


COLUMNS = {"prompt": "question", "completion": "answer"}


@pytest.fixture
def subsets(parts: str, tmp_path: Path) -> str:
    """Two subsets of unlike length, whose columns have names of their own."""
    rows = [
        dict(zip(("question", "answer"), (turn["content"] for turn in turns[:2]), strict=True))
        for turns in conversations(3)
    ]
    write_snapshot(tmp_path / "subsets", {"one": {"test": rows}, "two": {"test": rows[1:]}})
    return str(tmp_path / "subsets")


@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_reads_the_subset_and_the_columns_that_are_named(
    source: str, subsets: str, tmp_path: Path
) -> None:
    named = {"subset": "two", "columns": COLUMNS}
    result = run_evaluate(evaluation(tmp_path, source, subsets, **named))
    assert {name: result.settings[name] for name in named} == named
    assert result.settings["splits"] == {source: "test"}
    turns = [row[:2] for row in conversations(3)[1:]]
    two = evaluation(tmp_path, source, write_rows(tmp_path / "two.jsonl", turns))
    alone = run_evaluate(replace(two, output_dir=str(tmp_path / "alone")))
    assert (alone.heldout, alone.task, alone.drift) == (result.heldout, result.task, result.drift)
    assert (alone.harmful, alone.benign) == (result.harmful, result.benign)


def test_a_subset_or_a_column_that_is_not_there_is_refused(
    subsets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("run", "refusals"):
        monkeypatch.setattr(
            f"pact.evaluation.{module}.load_model", lambda *a, **k: pytest.fail("loaded")
        )
    rows = write_rows(tmp_path / "rows.jsonl", conversations(2))
    model, output = str(tmp_path / "model"), str(tmp_path / "refusals.jsonl")
    for path, settings, message in (
        (rows, {"subset": "two"}, "a file has no subsets, got subset='two' for .*rows.jsonl"),
        (subsets, {"subset": "three"}, "cannot be read as a data set: .*'three' not found"),
        (rows, {"columns": COLUMNS}, "line 1 of .*rows.jsonl lacks the column 'question'"),
        (rows, {"columns": {"question": "prompt"}}, "columns maps names of .*, got 'question'"),
    ):
        for source in SOURCES:
            with pytest.raises(ValueError, match=message):
                run_evaluate(evaluation(tmp_path, source, path, **settings))
        with pytest.raises(ValueError, match=message):
            write_refusals(RefusalsConfig(model=model, prompts=path, output=output, **settings))
    assert not (tmp_path / "evaluated").exists() and not Path(output).exists()


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps({"messages": turns}) for turns in rows))
    return str(path)


def test_the_only_split_needs_no_name_and_is_recorded(parts: str, tmp_path: Path) -> None:
    rows = [{"messages": turns} for turns in conversations(2)]
    DatasetDict({"validation": Dataset.from_list(rows)}).save_to_disk(tmp_path / "one")
    result = run_evaluate(evaluation(tmp_path, "heldout", str(tmp_path / "one")))
    assert result.settings["splits"] == {"heldout": "validation"}


def test_training_reads_train_unless_told(parts: str, tmp_path: Path) -> None:
    settings = {"model": str(tmp_path / "model"), "train_file": parts, "method": "plain"}
    epochs = {}
    for split in ("train", "test"):
        output = tmp_path / split
        config = TrainConfig(
            **settings, output_dir=str(output), split=split, max_steps=1, batch_size=5
        )
        epochs[split] = train(config).records[0]["rows"]
    assert epochs["test"] < epochs["train"]
    with pytest.raises(ValueError, match="got split='dev': name one"):
        train(TrainConfig(**settings, output_dir=str(tmp_path / "dev"), split="dev"))


def test_discovery_and_refusals_name_theirs(parts: str, tmp_path: Path) -> None:
    models = {"aligned": str(tmp_path / "model"), "base": str(tmp_path / "base")}
    discover = {**models, "data": parts, "output": str(tmp_path / "found.safetensors")}
    ask = {
        "model": str(tmp_path / "model"),
        "prompts": parts,
        "output": str(tmp_path / "refusals.jsonl"),
    }
    with pytest.raises(ValueError, match="got split=None"):
        run_discover(DiscoverConfig(**discover))
    with pytest.raises(ValueError, match="got split=None"):
        write_refusals(RefusalsConfig(**ask))
    found = run_discover(DiscoverConfig(**discover, split="test", top_k=8))
    assert found.metadata["split"] == "test" and found.metadata["num_samples"] == "2"
    with pytest.raises(ValueError, match="got none of 2 by keyword"):
        write_refusals(RefusalsConfig(**ask, split="test", max_new_tokens=2))


def test_flags_and_bad_rows(parts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--chat-template-kwargs` is JSON, `--skip-bad-rows` leaves out what cannot be used."""
    lines = [json.dumps({"prompt": "Hi", "completion": "Sure"}), "{", '{"prompt": null}']
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    flags = [
        *("evaluate", "--model", str(tmp_path / "model"), "--heldout", str(path)),
        *("--output-dir", str(tmp_path / "evaluated")),
    ]
    with pytest.raises(SystemExit):
        main([*flags, "--chat-template-kwargs", "{nonsense"])
    assert "must be a JSON object, got '{nonsense'" in capsys.readouterr().err
    assert main([*flags, "--chat-template-kwargs", '{"enable_thinking": false}']) == 2
    assert "'enable_thinking', which it does not" in capsys.readouterr().err
    assert main(flags) == 2
    assert "pairs.jsonl, line 2: every line must be one JSON object" in capsys.readouterr().err
    assert main([*flags, "--skip-bad-rows"]) == 0
    config = tmp_path / "evaluate.yaml"
    config.write_text("chat_template_kwargs: [1]\n")
    assert main([*flags, "--config", str(config)]) == 2
    assert "must be a mapping of names to values, got [1]" in capsys.readouterr().err
