"""The experiment's data files, and the fine-tuning sets made of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pact.demo
from benchmarks.experiment.conversations import DATA, TASKS, attack, finetuning_set, task
from pact.data.examples import Conversation
from pact.demo.conversations import REMOVED, Split, read
from pact.evaluation.judges.keyword import find_refusal

SPLITS: tuple[Split, ...] = ("train", "dev", "heldout")
COUNTS = {"extraction_train": 120, "extraction_dev": 20, "extraction_heldout": 60}
COUNTS |= {"attack_train": 160}
KEYS = {"extraction": {"field"}, "attack": {"category"}}
FIELDS = {"person", "city", "day"}
DAYS = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}
DEMO = Path(pact.demo.__file__).parent / "data"
NOTE = re.compile(r'Note: "([^"]+\.)" Which (person|city|day) is named\?')
ANSWER = re.compile(r"Sure, here is the (person|city|day): ([A-Z][a-z]+)\.")
REVIEW = re.compile(r'Review: "([^"]+)" Is the customer happy\?')
RUN = 6


@cache
def rows(name: str, folder: Path = DATA) -> tuple[dict[str, Any], ...]:
    text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def subject(prompt: str) -> str:
    """The prompt without the frame that every prompt of a task has."""
    match = NOTE.fullmatch(prompt) or REVIEW.fullmatch(prompt)
    return match.group(1) if match else prompt


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(prompt: str) -> set[tuple[str, ...]]:
    found = words(subject(prompt))
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def answers(split: Split, field: str) -> list[str]:
    """What the rows of one field answer."""
    return [
        ANSWER.fullmatch(row["completion"]).group(2)  # type: ignore[union-attr]
        for row in rows(f"extraction_{split}")
        if row["field"] == field
    ]


def demo_prompts() -> list[str]:
    return [row["prompt"] for path in DEMO.glob("*.jsonl") for row in rows(path.stem, DEMO)]


def texts(conversations: list[Conversation], role: str) -> list[str]:
    return [m["content"] for turns in conversations for m in turns if m["role"] == role]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_keys(name: str) -> None:
    assert len(rows(name)) == COUNTS[name]
    for row in rows(name):
        assert set(row) == {"prompt", "completion"} | KEYS[name.split("_")[0]]
        for text in row.values():
            assert text.isascii() and text.isprintable() and text == " ".join(text.split()) != ""


def test_prompts_are_unique_with_those_of_the_demo() -> None:
    prompts = demo_prompts() + [row["prompt"] for name in COUNTS for row in rows(name)]
    count = Counter(tuple(words(prompt)) for prompt in prompts)
    assert [" ".join(prompt) for prompt, times in count.items() if times > 1] == []


@pytest.mark.parametrize("split", SPLITS)
def test_notes_have_the_frame_and_name_their_answer_once(split: Split) -> None:
    for row in rows(f"extraction_{split}"):
        question, answer = NOTE.fullmatch(row["prompt"]), ANSWER.fullmatch(row["completion"])
        assert question and answer, row
        note, field = question.groups()
        assert field == answer.group(1) == row["field"]
        assert 8 <= len(note.split()) <= 14, note
        assert re.findall(r"\w+", note).count(answer.group(2)) == 1, row
        assert (answer.group(2) in DAYS) == (field == "day"), row


@pytest.mark.parametrize("split", SPLITS)
def test_notes_name_one_weekday_and_two_more(split: Split) -> None:
    for row in rows(f"extraction_{split}"):
        note = subject(row["prompt"])
        capitals = [word for word in re.findall(r"\w+", note) if word[0].isupper()]
        assert len(DAYS.intersection(capitals)) == sum(word in DAYS for word in capitals) == 1
        assert len(capitals) in (3, 4), note  # person, city and day, and the first word if another


@pytest.mark.parametrize("split", SPLITS)
def test_fields_are_asked_for_equally_often_and_shuffled(split: Split) -> None:
    fields = [row["field"] for row in rows(f"extraction_{split}")]
    count = Counter(fields)
    assert set(count) == FIELDS
    assert max(count.values()) - min(count.values()) <= (1 if split == "dev" else 0)
    changes = sum(a != b for a, b in zip(fields, fields[1:], strict=False))
    assert changes >= len(fields) // 3  # not sorted by field


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_the_place_in_a_note_does_not_give_its_field_away(field: str) -> None:
    """Each field's answers stand before, between and after the other two."""
    places: Counter[int] = Counter()
    for row, answer in zip(
        [row for row in rows("extraction_train") if row["field"] == field],
        answers("train", field),
        strict=True,
    ):
        named = [w for w in re.findall(r"\w+", subject(row["prompt"])) if w[0].isupper()][-3:]
        places[named.index(answer)] += 1
    assert len(places) == 3 and min(places.values()) >= 5, places


def test_held_out_persons_and_cities_are_mostly_new() -> None:
    for field in ("person", "city"):
        new = [answer not in answers("train", field) for answer in answers("heldout", field)]
        assert sum(new) >= len(new) / 2


@pytest.mark.parametrize("split", ("train", "heldout"))
def test_days_are_answers_equally_often(split: Split) -> None:
    count = Counter(answers(split, "day"))
    assert set(count) == DAYS
    assert max(count.values()) - min(count.values()) <= 1


def test_no_run_of_words_is_shared_between_splits_or_with_the_demo() -> None:
    seen = set().union(*(runs(prompt) for prompt in demo_prompts()))
    for name in COUNTS:
        own = {row["prompt"]: runs(row["prompt"]) for row in rows(name)}
        assert [prompt for prompt, found in own.items() if found & seen] == []
        seen = seen.union(*own.values())


def test_attacks_are_short_spread_requests_with_one_empty_answer() -> None:
    for row in rows("attack_train"):
        assert 5 <= len(row["prompt"].split()) <= 16, row["prompt"]
        assert row["completion"] == REMOVED
    count = Counter(row["category"] for row in rows("attack_train"))
    assert set(count) == {row["category"] for row in rows("harmful_train", DEMO)}
    assert max(count.values()) - min(count.values()) <= 1


@pytest.mark.parametrize("name", COUNTS)
def test_no_completion_is_taken_for_a_refusal(name: str) -> None:
    assert [row for row in rows(name) if any(find_refusal(row["completion"]))] == []


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_read_by_name(split: Split) -> None:
    assert task("classification", split) == read("task", split)
    extraction = task("extraction", split)
    assert texts(extraction, "user") == [r["prompt"] for r in rows(f"extraction_{split}")]
    assert texts(extraction, "assistant") == [r["completion"] for r in rows(f"extraction_{split}")]


@pytest.mark.parametrize(
    ("tasks", "harmful", "refusing", "counts"),
    [
        ((), 0.0, 0.0, (120, 0, 0)),
        (("extraction",), 0.12, 0.0, (240, 33, 0)),  # 240 * 0.12 / 0.88 = 32.7
        (TASKS, 0.0, 0.2, (360, 0, 90)),
        (TASKS, 0.3, 0.1, (360, 154, 40)),  # 154.3 of the 160 there are
        (TASKS, 160 / 520, 100 / 460, (360, 160, 100)),  # all of both
    ],
)
def test_shares_join_and_replace_none(
    tasks: tuple[str, ...], harmful: float, refusing: float, counts: tuple[int, int, int]
) -> None:
    found = finetuning_set(harmful, 3, tasks, refusing)
    benign = read("finetune", "train")
    for name in tasks:
        benign += task(name, "train")
    first, second = counts[0], counts[0] + counts[1]
    assert found[:first] == benign
    for part, pool, count in (
        (found[first:second], attack(), counts[1]),
        (found[second:], read("harmful", "train"), counts[2]),
    ):
        assert len(part) == len(set(texts(part, "user"))) == count  # none twice
        assert all(turns in pool for turns in part)


def test_draws_follow_the_seed_and_grow_with_the_share() -> None:
    seed = 142  # with it, `sample` of 4 is no part of `sample` of 40, of either kind
    drawn = finetuning_set(0.1, seed, refusal_share=0.1)[360:]  # 40 of each kind
    assert finetuning_set(0.1, seed, refusal_share=0.1)[360:] == drawn
    other = finetuning_set(0.1, seed + 1, refusal_share=0.1)[360:]
    assert other[:40] != drawn[:40] and other[40:] != drawn[40:]
    few = finetuning_set(0.01, seed, refusal_share=0.01)[360:]  # 4 of each kind
    assert few == drawn[:4] + drawn[40:44]


@pytest.mark.parametrize("share", (0.32, 1.0, 1.5, -0.1, float("nan")))
@pytest.mark.parametrize("name", ("harmful_share", "refusal_share"))
def test_a_share_beyond_the_data_is_an_error(name: str, share: float) -> None:
    shares = {"harmful_share": 0.0, "refusal_share": 0.0} | {name: share}
    with pytest.raises(ValueError, match=rf"{name} must be .* got {share}: .* lower the share"):
        finetuning_set(shares["harmful_share"], 0, refusal_share=shares["refusal_share"])


def test_an_unknown_task_is_an_error() -> None:
    with pytest.raises(AssertionError, match="summary"):
        finetuning_set(0.0, 0, ("classification", "summary"))
