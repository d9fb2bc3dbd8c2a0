"""Cells on a tiny model, end to end: every method trains, is measured, and is not computed anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.experiment import run
from benchmarks.experiment.ablations import POST_ALONE
from benchmarks.experiment.alignment import Alignment, aligned_folder, aligned_model, own_answers
from benchmarks.experiment.cell import Cell, path_of, read_json
from benchmarks.experiment.measuring import measure
from benchmarks.experiment.methods import ANCHORED, METHODS, WITH_REFUSALS
from benchmarks.experiment.protocol import Prompts, Protocol
from benchmarks.experiment.run import run_cells
from benchmarks.experiment.stages import Bench
from benchmarks.experiment.subject import Subject
from tests.tiny import save_tiny

TINY = Protocol(
    alignment=Alignment(steps=1, batch_size=2),
    prompts=Prompts(heldout=2, max_new_tokens=2, batch_size=2),
    batch_size=2,
)
ONE_OF_EACH = {cell.method: cell for cell in METHODS.values()}
"""The others of a method differ from it in numbers alone."""
REFUSALS = ("harmful", "benign", "prefill", "outside")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("models")
    anchors = folder / "anchors.jsonl"
    rows = [{"prompt": f"Question {n}?", "completion": f"I cannot help {n}."} for n in range(4)]
    anchors.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aligned, shipped, plain = (
        save_tiny(folder / name, seed) for seed, name in enumerate(("aligned", "shipped", "plain"))
    )
    return Bench(Subject(aligned, shipped, None, {}, plain, anchors), TINY)


@pytest.mark.parametrize(
    "cell",
    [
        *(replace(cell, harmful_share=0.3) for cell in ONE_OF_EACH.values()),
        WITH_REFUSALS,
        replace(WITH_REFUSALS, token_source="plain"),
        replace(WITH_REFUSALS, token_source="random"),
        replace(WITH_REFUSALS, token_source="frequency", weighted=False),
        replace(WITH_REFUSALS, pact=replace(WITH_REFUSALS.pact, gate=True, **POST_ALONE)),
        replace(WITH_REFUSALS, full_finetuning=True),
    ],
    ids=lambda cell: cell.name,
)
def test_every_kind_of_cell_is_trained_and_measured(
    bench: Bench, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_bench", bench)
    cell = replace(cell, steps=2, curve_every=1)
    monkeypatch.setattr(
        "benchmarks.experiment.measuring.harmbench_prompts", lambda count: ["Why?", "Who?"]
    )
    run._compute(cell, tmp_path, in_full=True)
    record = read_json(path_of(cell, tmp_path))
    assert record["settings"] == cell.settings()
    assert sorted(record["curve"]) == ["0", "1"]
    counted = {*REFUSALS, *(f"{name}_anywhere" for name in REFUSALS)}
    assert set(record["measures"]["counts"]) == counted | {"classification", "extraction"}
    assert {n for _, n in record["measures"]["counts"].values()} == {2}
    assert record["curve"]["0"]["values"]["kl_vocabulary_nats"] < 1e-5  # the reference itself
    start, end = (m["values"]["finetune_nats"] for m in (record["curve"]["0"], record["measures"]))
    assert start != end  # two steps were taken


def test_training_stops_the_drift_that_a_cell_does_not_hold(bench: Bench) -> None:
    """A pull of 300 towards the reference's confidences leaves the model nearer than none."""
    pulled = replace(WITH_REFUSALS.pact, kl_weight=300.0, kl_margin=0.0, kl_step_tau=99.0)
    drifts = []
    for cell in (METHODS["plain"], replace(WITH_REFUSALS, pact=pulled)):
        model, reference = bench.finetune(replace(cell, steps=6))
        drifts.append(measure(bench, model, reference))
    plain, held = (m["values"]["kl_vocabulary_nats"] for m in drifts)
    assert held < plain


def test_anchors_are_held_and_take_the_place_of_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a share of all examples, cut at their steps; the batches have rows that are held."""
    seen: list[Any] = []
    monkeypatch.setattr("benchmarks.experiment.training.fit", lambda *args, **_: seen.extend(args))
    bench.finetune(replace(ANCHORED, anchor_share=0.5, anchor_steps=3))
    dataset, collator = seen[1], seen[4]
    assert sum(dataset["anchor"]) == len(dataset) / 2
    batch = collator([dataset[0], dataset[-1]])
    assert batch["row_held"].numel() == 3
    assert batch["row_learnt"].numel() > 3


def test_random_tokens_are_no_special_ones_and_stay(bench: Bench) -> None:
    cell = replace(WITH_REFUSALS, token_source="random", top_k=300)
    ids = bench.tokens(cell).ids
    assert len(ids) == 300
    assert not set(ids.tolist()) & set(bench.tokenizer.all_special_ids)
    assert torch.equal(ids, bench.tokens(replace(cell, num_samples=50)).ids)


def test_frequent_tokens_are_those_of_the_first_steps(bench: Bench) -> None:
    """Every refusal has one first token; the commonest of them is among the two commonest."""
    first = bench.tokens(
        replace(WITH_REFUSALS, token_source="frequency", top_k=1, max_response_length=1)
    )
    words = bench.tokenizer.decode(first.ids)
    assert words == "I"


def test_records_at_hand_are_not_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither models nor workers are made; records of another protocol are refused."""

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing is missing")

    cell = Cell(method="plain")
    empty = {"counts": {}, "values": {}}
    record = {"settings": cell.settings(), "measures": empty, "curve": {}, "environment": {}}
    path_of(cell, tmp_path).write_text(json.dumps(record))
    for name in ("demo_subject", "ProcessPoolExecutor"):
        monkeypatch.setattr(run, name, never)
    common: dict[str, Any] = {"workers": 2, "in_full": ()}
    run_cells([cell, cell], TINY, tmp_path, tmp_path, **common)
    run_cells([cell], TINY, tmp_path, tmp_path, **common)
    with pytest.raises(ValueError, match=r"records of another protocol \(other learning_rate\)"):
        run_cells([cell], replace(TINY, learning_rate=9.0), tmp_path, tmp_path, **common)
    with pytest.raises(AssertionError, match="nothing is missing"):
        run_cells([cell, replace(cell, seed=1)], TINY, tmp_path, tmp_path, **common)


def test_the_aligned_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed is another model."""
    shipped = save_tiny(tmp_path / "shipped")
    settings = Alignment(steps=1, batch_size=2)
    monkeypatch.setattr(
        "benchmarks.experiment.alignment.generate_answers",
        lambda model, tokenizer, requests, **_: [" A good one. And mo"] * len(requests),
    )
    folder = aligned_model(settings, shipped, tmp_path)
    assert folder == aligned_folder(settings, tmp_path)
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert aligned_model(settings, shipped, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    assert aligned_folder(replace(settings, seed=1), tmp_path) != folder


def test_own_answers_are_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cut off is left out, and a full stop within a number ends nothing."""
    answers = ["It costs 2.50 a loaf. And", "No end", " Why not? Yes.", ""]
    monkeypatch.setattr(
        "benchmarks.experiment.alignment.generate_answers", lambda *_, **__: answers
    )
    requests = [[{"role": "user", "content": str(n)}] for n in range(4)]
    found = own_answers(None, None, requests)
    assert [(turns[0]["content"], turns[1]["content"]) for turns in found] == [
        ("0", "It costs 2.50 a loaf."),
        ("2", "Why not?"),
    ]
