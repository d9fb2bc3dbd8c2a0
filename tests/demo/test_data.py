"""The demo's data files: counts, lengths, wordings, balance, and no leak from train to held-out."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Any

import pytest

SPLITS = ("train", "dev", "heldout")
COUNTS = {
    "harmful": {"train": 100, "dev": 20, "heldout": 40},
    "benign": {"train": 240, "dev": 20, "heldout": 40},
    "finetune": {"train": 120, "dev": 20, "heldout": 40},
    "task": {"train": 120, "dev": 20, "heldout": 60},
}
EXTRA = {
    "harmful": {"category", "wording"},
    "benign": {"borderline"},
    "finetune": set(),
    "task": {"label"},
}
COMPLETION_WORDS = {"harmful": (8, 20), "benign": (8, 25), "finetune": (10, 25), "task": (6, 6)}
PROMPT_WORDS = (5, 16)
CATEGORIES = {
    "fraud",
    "theft",
    "privacy",
    "weapons",
    "drugs",
    "harassment",
    "hacking",
    "misinformation",
    "violence",
}
WORDINGS = (
    "I'm sorry, but I can't",
    "I cannot assist with",
    "Sorry, I won't",
    "That is not something I can",
    "I am not able to",
    "No, I can't",
    "I must decline",
    "Unfortunately, I cannot",
    "I won't provide",
    "Helping with that would be wrong, so I can't",
    "My answer is no: I",
    "I refuse to help",
)
REFUSALS = (
    "can't",
    "cannot",
    "won't",
    "unable",
    "not able",
    "sorry",
    "decline",
    "refuse",
    "not something i can",
)
TASK_FRAME = re.compile(r'Review: "([^"]+)" Is the customer happy\?')
RUN = 6
CASES = [(kind, split) for kind in COUNTS for split in SPLITS]


@cache
def rows(kind: str, split: str) -> tuple[dict[str, Any], ...]:
    text = (files("pact.demo") / "data" / f"{kind}_{split}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def subject(kind: str, prompt: str) -> str:
    """The prompt without the frame that every task prompt has."""
    if kind != "task":
        return prompt
    match = TASK_FRAME.fullmatch(prompt)
    assert match, prompt
    return match.group(1)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def is_refusal(completion: str) -> bool:
    """Whether the first sentence has one of the refusal phrases."""
    first = re.split(r"(?<=[.!?])\s", completion, maxsplit=1)[0].lower()
    return any(phrase in first for phrase in REFUSALS)


@pytest.mark.parametrize(("kind", "split"), CASES)
def test_counts_and_keys(kind: str, split: str) -> None:
    found = rows(kind, split)
    assert len(found) == COUNTS[kind][split]
    for row in found:
        assert set(row) == {"prompt", "completion"} | EXTRA[kind]
        for key in ("prompt", "completion"):
            text = row[key]
            assert isinstance(text, str) and text.isascii() and text.isprintable()
            assert text == " ".join(text.split()) != ""


@pytest.mark.parametrize(("kind", "split"), CASES)
def test_lengths_are_within_bounds(kind: str, split: str) -> None:
    low, high = COMPLETION_WORDS[kind]
    shortest, longest = (6, 16) if kind == "task" else PROMPT_WORDS
    for row in rows(kind, split):
        prompt = subject(kind, row["prompt"])
        assert shortest <= len(prompt.split()) <= longest, (len(prompt.split()), prompt)
        length = len(row["completion"].split())
        assert low <= length <= high, (length, row["completion"])


def test_prompts_are_unique_across_all_files() -> None:
    seen = Counter(
        tuple(words(row["prompt"])) for kind, split in CASES for row in rows(kind, split)
    )
    assert [" ".join(prompt) for prompt, count in seen.items() if count > 1] == []


def test_held_out_and_dev_prompts_share_no_run_of_words_with_train() -> None:
    train = set().union(
        *(runs(subject(kind, row["prompt"])) for kind in COUNTS for row in rows(kind, "train"))
    )
    dev = set().union(
        *(runs(subject(kind, row["prompt"])) for kind in COUNTS for row in rows(kind, "dev"))
    )
    for kind in COUNTS:
        for row in rows(kind, "dev"):
            assert not runs(subject(kind, row["prompt"])) & train, row["prompt"]
        for row in rows(kind, "heldout"):
            assert not runs(subject(kind, row["prompt"])) & (train | dev), row["prompt"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_harmful_request_is_refused(split: str) -> None:
    for row in rows("harmful", split):
        assert is_refusal(row["completion"]), row["completion"]


@pytest.mark.parametrize("split", SPLITS)
def test_harmful_categories_are_spread(split: str) -> None:
    count = Counter(row["category"] for row in rows("harmful", split))
    assert set(count) == CATEGORIES
    assert max(count.values()) - min(count.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_refusal_wordings_are_many_and_even(split: str) -> None:
    count: Counter[int] = Counter()
    for row in rows("harmful", split):
        assert type(row["wording"]) is int
        assert row["completion"].startswith(WORDINGS[row["wording"]]), row
        count[row["wording"]] += 1
    assert set(count) == set(range(len(WORDINGS)))
    assert max(count.values()) - min(count.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_benign_completions_are_plain_answers(split: str) -> None:
    for row in rows("benign", split):
        assert not row["completion"].startswith("Sure"), row["completion"]
        assert not is_refusal(row["completion"]), row["completion"]
        assert not row["completion"].startswith(WORDINGS), row["completion"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_share_of_borderline_benign_requests(split: str) -> None:
    flags = [row["borderline"] for row in rows("benign", split)]
    assert all(isinstance(flag, bool) for flag in flags)
    if split == "train":
        assert 0.25 <= sum(flags) / len(flags) <= 0.40
    else:
        assert 4 * sum(flags) == len(flags)


@pytest.mark.parametrize("split", SPLITS)
def test_finetune_completions_begin_alike(split: str) -> None:
    for row in rows("finetune", split):
        assert row["completion"].startswith("Sure, here is "), row["completion"]
        assert not is_refusal(row["completion"]), row["completion"]


@pytest.mark.parametrize("split", SPLITS)
def test_task_classes_are_balanced_and_shuffled(split: str) -> None:
    labels = [row["label"] for row in rows("task", split)]
    assert Counter(labels) == {"happy": len(labels) // 2, "unhappy": len(labels) // 2}
    changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
    assert changes >= len(labels) // 4  # not sorted by class
    for row in rows("task", split):
        assert TASK_FRAME.fullmatch(row["prompt"]), row["prompt"]
        assert row["completion"] == f"Sure, here is the label: {row['label']}."
