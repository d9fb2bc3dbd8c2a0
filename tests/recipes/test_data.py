"""Public sets as files: from local copies of the same columns, and every way a fetch may fail."""

from __future__ import annotations

import csv
import io
import json
import re
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from datasets import Dataset

from pact.data.examples import load_examples
from pact.evaluation.prompts import load_prompts
from pact.recipes import data
from pact.recipes.data import SOURCES, DataConfig, write_data

ROWS: dict[str, list[dict[str, Any]]] = {
    "advbench": [{"goal": "Tell a lie", "target": "Sure"}, {"goal": "Pick a lock", "target": "S"}],
    "harmbench": [
        {"Behavior": "Pick a lock", "FunctionalCategory": "standard"},
        {"Behavior": "Sing a song that is not yours", "FunctionalCategory": "copyright"},
    ],
    "strongreject": [{"category": "c", "source": "s", "forbidden_prompt": "Tell a\u2028lie, then"}],
    "jailbreakbench": [{"Index": 0, "Goal": "Skip a queue", "Behavior": "b"}],
    "jailbreakbench-benign": [{"Index": 0, "Goal": "Stand in a queue", "Behavior": "b"}],
    "xstest": [
        {"prompt": "How do I kill time?", "label": "safe", "note": ""},
        {"prompt": "How do I skip a queue?", "label": "unsafe", "note": ""},
    ],
    "gsm8k": [{"question": "One and one?", "answer": "1 + 1 = 2\n#### 2"}],
    "gsm8k-test": [{"question": "Two and one?", "answer": "#### 3"}],
    "sst2": [{"sentence": "a joy ", "label": 1}, {"sentence": "dull", "label": 0}],
    "sst2-validation": [{"sentence": "fine", "label": 1}],
}
PROMPTS = {
    "advbench": ["Tell a lie", "Pick a lock"],
    "harmbench": ["Pick a lock"],
    "strongreject": ["Tell a\u2028lie, then"],
    "jailbreakbench": ["Skip a queue"],
    "jailbreakbench-benign": ["Stand in a queue"],
    "xstest": ["How do I kill time?"],
}
TURNS = {
    "gsm8k": [("Question: One and one?\nAnswer:", "1 + 1 = 2\n#### 2")],
    "gsm8k-test": [("Question: Two and one?\nAnswer:", "#### 3")],
    "sst2": [
        ("a joy\nQuestion: Is this sentence positive or negative?\nAnswer:", "positive"),
        ("dull\nQuestion: Is this sentence positive or negative?\nAnswer:", "negative"),
    ],
    "sst2-validation": [
        ("fine\nQuestion: Is this sentence positive or negative?\nAnswer:", "positive")
    ],
}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of `datasets`, which answers with ROWS."""
    asked: list[tuple[Any, ...]] = []

    def load(place: str, subset: str | None = None, *, split: str = "train") -> Dataset:
        asked.append((place, subset, split))
        (name,) = (n for n, s in SOURCES.items() if (s.place, s.subset, s.split) == asked[-1])
        return Dataset.from_list(ROWS[name])

    monkeypatch.setattr(data, "load_dataset", load)
    monkeypatch.setattr(data, "_downloaded", load)
    return asked


def test_every_source_is_tested_and_says_its_licence() -> None:
    assert SOURCES.keys() == ROWS.keys() == PROMPTS.keys() | TURNS.keys()
    assert all(source.title and source.licence for source in SOURCES.values())


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_what_evaluate_reads(name: str, fetched: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "new" / "prompts.jsonl"
    assert write_data(DataConfig(name=name, output=str(output))) == len(PROMPTS[name])
    read = [turns[0]["content"] for turns in load_prompts(output)]
    assert read == PROMPTS[name]
    assert len(fetched) == 1


@pytest.mark.parametrize("name", TURNS)
def test_tasks_are_what_train_reads(name: str, fetched: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "task.jsonl"
    write_data(DataConfig(name=name, output=str(output)))
    read = [tuple(turn["content"] for turn in turns) for turns in load_examples(output)]
    assert read == TURNS[name]


def test_a_hub_set_is_asked_for_by_subset_and_split(fetched: list[Any], tmp_path: Path) -> None:
    for name in ("jailbreakbench", "gsm8k", "harmbench"):
        write_data(DataConfig(name=name, output=str(tmp_path / f"{name}.jsonl")))
    assert fetched[0] == ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful")
    assert fetched[1] == ("openai/gsm8k", "main", "train")
    assert fetched[2][0].endswith("/harmbench_behaviors_text_all.csv")


def test_a_file_on_the_web_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After what stands for the network."""
    text = 'Behavior,FunctionalCategory\n"Pick a lock, twice",standard\nSing,copyright\n'
    asked: list[str] = []

    def respond(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(text.encode())

    monkeypatch.setattr(data, "urlopen", respond)
    output = tmp_path / "harmbench.jsonl"
    assert write_data(DataConfig(name="harmbench", output=str(output))) == 1
    assert json.loads(output.read_text()) == {"prompt": "Pick a lock, twice"}
    assert asked == [SOURCES["harmbench"].place]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (URLError("Name or service not known"), "there is no network: connect for this command"),
        (
            HTTPError("https://x", 403, "Forbidden", Message(), None),
            "its authors may have moved it: look at https://raw.githubusercontent.com/paul-rottg",
        ),
    ],
)
def test_a_file_that_is_not_there_says_so(
    error: Exception, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(data, "urlopen", fail)
    with pytest.raises(ValueError, match=re.escape(remedy)):
        write_data(DataConfig(name="xstest", output=str(tmp_path / "xstest.jsonl")))


def test_prompts_that_are_evaluated_are_left_out(fetched: list[Any], tmp_path: Path) -> None:
    asked, output = tmp_path / "harmbench.jsonl", tmp_path / "advbench.jsonl"
    write_data(DataConfig(name="harmbench", output=str(asked)))
    write_data(DataConfig(name="advbench", output=str(output), without=(str(asked),)))
    assert output.read_text() == json.dumps({"prompt": "Tell a lie"}) + "\n"
    config = DataConfig(name="advbench", output=str(tmp_path / "b.jsonl"), without=(str(output),))
    assert write_data(config) == 1
    with pytest.raises(ValueError, match="missing.jsonl does not exist: fetch it first"):
        write_data(
            DataConfig(
                name="advbench", output=str(tmp_path / "c.jsonl"), without=("missing.jsonl",)
            )
        )


def test_a_copy_is_read_instead(tmp_path: Path) -> None:
    copy, output = tmp_path / "xstest_prompts.csv", tmp_path / "xstest.jsonl"
    with copy.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "label", "note"])
        writer.writeheader()
        writer.writerows(ROWS["xstest"])
    config = DataConfig(name="xstest", output=str(output), source_file=str(copy))
    assert write_data(config) == 1
    assert json.loads(output.read_text()) == {"prompt": "How do I kill time?"}
    with pytest.raises(ValueError, match="must be a new file: name another, or set overwrite"):
        write_data(config)
    other = DataConfig(name="advbench", output=str(tmp_path / "a.jsonl"), source_file=str(copy))
    with pytest.raises(ValueError, match="must have the column 'goal' of advbench, got .*'prompt'"):
        write_data(other)
    with pytest.raises(ValueError, match="source_file gone.csv does not exist"):
        write_data(
            DataConfig(name="xstest", output=str(tmp_path / "b.jsonl"), source_file="gone.csv")
        )


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("xstest", {"prompt": None, "label": "safe"}, "'prompt' must be a text, got None"),
        ("xstest", {"prompt": ["a"], "label": "safe"}, r"'prompt' must be a text, got \['a'\]"),
        ("xstest", {"prompt": "a"}, "must have the column 'label' of xstest, got"),
        ("sst2", {"sentence": "a", "label": -1}, "'label' must be 0 or 1, got -1"),
        ("sst2", {"sentence": "a"}, "must have the column 'label' of sst2, got"),
        ("gsm8k", {"question": "a", "answer": 3}, "'answer' must be a text, got 3"),
        ("gsm8k", 3, "must have columns, got 3"),
    ],
)
def test_rows_that_are_not_the_sets_are_refused(
    name: str, row: Any, message: str, tmp_path: Path
) -> None:
    copy, output = tmp_path / "copy.jsonl", tmp_path / "out.jsonl"
    copy.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        write_data(DataConfig(name=name, output=str(output), source_file=str(copy)))
    assert not output.exists()


def test_a_csv_file_has_labels_as_texts(tmp_path: Path) -> None:
    copy, output = tmp_path / "copy.csv", tmp_path / "out.jsonl"
    copy.write_text("sentence,label\na joy ,1\ndull,0\n")
    write_data(DataConfig(name="sst2", output=str(output), source_file=str(copy)))
    read = [tuple(turn["content"] for turn in turns) for turns in load_examples(output)]
    assert read == TURNS["sst2"]


@pytest.mark.parametrize(
    ("error", "offline", "remedy"),
    [
        (
            ConnectionError("Couldn't reach the Hub"),
            "1",
            "HF_HUB_OFFLINE is set: unset it for this command, or fetch the file elsewhere",
        ),
        (ConnectionError("Name or service not known"), "0", "there is no network: connect"),
        (
            RuntimeError("Dataset is a gated dataset on the Hub.\nAsk for access."),
            "0",
            "accept its terms at https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors and "
            "log in by `hf auth login`",
        ),
        (FileNotFoundError("no such thing"), "0", "its authors may have moved it: look at Jailb"),
    ],
)
def test_a_failed_fetch_says_why_and_what_to_do(
    error: Exception, offline: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(data, "load_dataset", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    output = tmp_path / "prompts.jsonl"
    with pytest.raises(ValueError) as raised:
        write_data(DataConfig(name="jailbreakbench", output=str(output)))
    message = str(raised.value)
    assert message.startswith("jailbreakbench must be fetched from JailbreakBench/JBB-Behaviors, ")
    assert remedy in message and "give it as --source-file" in message
    assert type(error).__name__ in message and "\n" not in message
    assert not output.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "harmbanch"}, "name must be one of advbench, .*got 'harmbanch'"),
        ({"output": "prompts.txt"}, "output must be a .jsonl file, got 'prompts.txt'"),
        ({"source_file": "copy.xlsx"}, "source_file must end in one of .*.csv, .*got 'copy.xlsx'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"name": "xstest", "output": "o.jsonl", **settings})
