"""Runs with anchors: live and from a cache, whole and in micro-batches, and no other resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from pact.data.anchors import ANCHOR
from pact.discovery import SafetyTokens
from pact.objective import CrossEntropy, PactConfig, PactObjective
from pact.reference import AdaptersOff, FrozenModel, check_same_model
from pact.training import TrainConfig, train
from pact.training.checks import check_anchors
from pact.training.student import batch_loss
from pact.training.trainer_batches import first_examples
from pact_kernels import ReferenceStates
from tests.rounding import NO_KL, SUMS
from tests.tiny import save_tiny, tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations, problem


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model, data, anchors and tokens."""
    folder = tmp_path_factory.mktemp("files")
    rows = [json.dumps({"messages": turns}) for turns in conversations(14)]
    (folder / "train.jsonl").write_text("\n".join(rows[:8]))
    (folder / "anchors.jsonl").write_text("\n".join(rows[8:]))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens.safetensors")
    return {
        "model": str(save_tiny(folder / "model")),
        "train_file": str(folder / "train.jsonl"),
        "anchors": str(folder / "anchors.jsonl"),
        "anchor_share": 0.4,
        "anchor_steps": 3,
        "tokens": str(folder / "tokens.safetensors"),
        "batch_size": 5,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "max_length": 200,
    }


def losses(
    files: dict[str, Any], folder: Path, pact: PactConfig | None = None, **options: Any
) -> list[float]:
    config = TrainConfig(**{**files, **options, "output_dir": str(folder)})
    return [record["loss"] for record in train(config, pact or PactConfig()).records]


def test_a_run_is_the_same_run(files: dict[str, Any], tmp_path: Path) -> None:
    live = losses(files, tmp_path / "live", cache=False)
    cached = losses(files, tmp_path / "cached", cache_dtype="fp32")
    assert cached == pytest.approx(live, rel=SUMS)
    cut = {"cache": False, "micro_batch_size": 2, "packing": True}
    assert losses(files, tmp_path / "cut", **cut) == pytest.approx(live, rel=SUMS)
    without = losses({**files, "anchors": None}, tmp_path / "without", cache=False)
    assert live[-1] != pytest.approx(without[-1], rel=1e-3)


def test_anchors_alone_can_be_held(files: dict[str, Any], tmp_path: Path) -> None:
    """Another run than one that holds the data too; without anchors there is nothing to hold."""
    alone = PactConfig(anchors_only=True)
    config = TrainConfig(**files, output_dir=str(tmp_path / "run"), cache=False)
    records = train(config, alone).records
    assert all(record["kl"] > -NO_KL for record in records) and records[-1]["kl"] > NO_KL
    both = losses(files, tmp_path / "both", cache=False)
    assert records[-1]["loss"] != pytest.approx(both[-1], rel=1e-5)  # four steps from the reference
    without = TrainConfig(**{**files, "anchors": None}, output_dir=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="anchors_only holds the rows of anchors alone"):
        train(without, alone)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("gate", [False, True])
def test_with_anchors_alone_a_run_is_the_same_run(
    gate: bool, files: dict[str, Any], tmp_path: Path
) -> None:
    """Live, from a cache, and in packed micro-batches, of which some have no anchor."""
    alone = PactConfig(anchors_only=True, gate=gate)
    live = losses(files, tmp_path / "live", alone, cache=False)
    kept = {"cache_dtype": "fp32", "cache_dir": str(tmp_path / "cache")}
    assert losses(files, tmp_path / "cached", alone, **kept) == pytest.approx(live, rel=SUMS)
    for packing in (False, True):
        cut = {"cache": False, "micro_batch_size": 2, "packing": packing}
        found = losses(files, tmp_path / f"cut-{packing}", alone, **cut)
        assert found == pytest.approx(live, rel=SUMS)
    (facts,) = (tmp_path / "cache").glob("*/meta.json")
    # 5 of 13 examples are anchors, of 3 rows each: nothing is kept of the others
    assert json.loads(facts.read_text())["rows"] == 15


def test_the_reference_sees_lines_with_anchors_alone(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    own = AdaptersOff.__call__

    def noted(reference: AdaptersOff, batch: Mapping[str, Tensor]) -> ReferenceStates:
        states = own(reference, batch)
        seen.append((batch["input_ids"].shape[0], states.full_hidden.shape[0]))
        return states

    monkeypatch.setattr(AdaptersOff, "__call__", noted)
    losses(files, tmp_path / "run", PactConfig(anchors_only=True), cache=False)
    held = seen[1:]  # the first call checks the whole batch
    assert all(rows == 3 * lines for lines, rows in held)
    assert 0 < sum(lines for lines, _ in held) < 4 * 5  # of four steps


def test_a_data_set_without_anchors_is_refused_by_loop_and_trainer() -> None:
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, PactConfig(anchors_only=True))
    rows = {"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]}
    with pytest.raises(ValueError, match="got data without any"):
        check_anchors(objective, Dataset.from_dict(rows))
    with pytest.raises(ValueError, match="got data without any"):
        check_anchors(objective, Dataset.from_dict({**rows, "anchor": [False]}))
    with pytest.raises(ValueError, match="got data without any"):
        check_anchors(objective, [{"input_ids": [1], "labels": [1]}])
    check_anchors(objective, Dataset.from_dict({**rows, "anchor": [True]}))
    check_anchors(CrossEntropy(), Dataset.from_dict(rows))


def test_an_anchor_without_rows_is_no_anchor() -> None:
    """Its labels are all -100: of a process without a share, say, or cut off."""
    given = problem(None)
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, PactConfig(anchors_only=True))
    model, reference = tiny_llama(), FrozenModel(tiny_llama(seed=1))
    learnt, other = given.dataset[0], given.dataset[1]
    empty = {**other, "labels": [-100] * len(other["labels"]), ANCHOR: True}
    batch = given.collator([learnt, empty])
    assert batch["row_held"].numel() == 0
    loss = batch_loss(model, objective, reference, batch)
    assert float(loss.kl) == 0.0 and float(loss.loss) > 0.0
    assert float(batch_loss(model, objective, reference, given.collator([empty]), 5).loss) == 0.0


def test_examples_that_are_left_out_of_a_batch_take_their_rows_along() -> None:
    """What fills up the last batch of an evaluation in several processes is not counted."""
    given = problem(None)
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, PactConfig())
    model, reference = tiny_llama(), FrozenModel(tiny_llama(seed=1))
    anchor, learnt = {**given.dataset[0], ANCHOR: True}, given.dataset[1]
    both = given.collator([anchor, learnt])
    held = batch_loss(model, objective, reference, first_examples(both, 1))
    alone = batch_loss(model, objective, reference, given.collator([anchor]))
    torch.testing.assert_close(held.loss, alone.loss)
    assert float(held.cross_entropy) == 0.0 and float(held.kl) > 0.0  # a mean over its own rows
    none = batch_loss(model, objective, reference, first_examples(both, 0), 5)
    assert float(none.loss) == 0.0


def test_another_model_is_noticed_where_the_first_batch_has_no_anchor() -> None:
    given = problem(None)
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, PactConfig(anchors_only=True))
    batch = given.collator([given.dataset[0]])
    model = tiny_llama()
    assert check_same_model(model, FrozenModel(tiny_llama()), batch, objective) < 1e-5
    with pytest.raises(ValueError, match="before the first step the student must be its reference"):
        check_same_model(model, FrozenModel(tiny_llama(seed=1)), batch, objective)


def test_other_anchors_are_another_run(files: dict[str, Any], tmp_path: Path) -> None:
    losses(files, tmp_path / "run", save_every=3, max_steps=3)
    text = Path(files["anchors"]).read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(text[1:]))
    changed = {**files, "anchors": str(other), "max_steps": 3, "output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="data|anchors"):
        train(TrainConfig(**changed, save_every=3, resume=True), PactConfig())


def test_plain_fine_tuning_has_nothing_to_hold_them_to(files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="anchors are held to the reference"):
        TrainConfig(**files, output_dir="run", method="plain")


def test_a_first_step_of_anchors_alone(files: dict[str, Any], tmp_path: Path) -> None:
    """It has rows, of which none is learnt: no reason to refuse the data."""
    alone = {"anchor_share": 0.9, "batch_size": 1, "max_steps": 1, "cache": False}
    for seed in range(3):  # nine in ten of the first examples are anchors
        found = losses(files, tmp_path / str(seed), seed=seed, **alone)
        assert found[0] >= 0.0
    assert 0.0 in [float(json.loads(line)["cross_entropy"]) for line in _metrics(tmp_path)]


def _metrics(folder: Path) -> list[str]:
    return [path.read_text().splitlines()[0] for path in folder.glob("*/metrics.jsonl")]
