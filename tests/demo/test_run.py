"""The whole demo on a tiny random model: every stage runs, and every promised file is there."""

from __future__ import annotations

import json

import pytest
import yaml

from pact.demo import DemoConfig, run_demo
from pact.demo import conversations as demo_conversations
from pact.demo.alignment import WEIGHTS
from pact.demo.config import OF_ALIGNMENT
from pact.demo.conversations import REMOVED, finetuning_set, read
from pact.demo.stages import arms
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from tests.objectives import matching
from tests.rounding import NO_KL, SUMS

NAMES = ["aligned", "plain", "PACT selection", "PACT anchors"]


def test_the_arms_are_what_was_released_and_what_is_recommended():
    plain, released, recommended = arms(DemoConfig())
    assert (plain.pact, plain.anchor_share) == (None, 0.0)
    assert (released.pact, released.anchor_share) == (matching("selection"), 0.0)
    alone = PactConfig(kl_weight=10.0, anchors_only=True)
    assert (recommended.pact, recommended.anchor_share) == (alone, 0.5)


def test_demo_in_a_reduced_form(trained, small_demo, tmp_path, capsys):
    """With shipped adapters; tests/demo/test_alignment.py has the training of them."""
    results = run_demo(small_demo(from_scratch=False, align_steps=DemoConfig.align_steps))
    assert list(results) == NAMES
    printed = capsys.readouterr().out
    for name in NAMES:
        assert name in printed
    output = tmp_path / "out"
    assert (output / "table.txt").read_text() in printed
    assert "aligned model as shipped" in printed
    assert printed.rstrip().endswith(str(output / "report.html"))
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    tokens = SafetyTokens.load(output / "tokens.safetensors")
    assert 2 <= tokens.ids.numel() <= 20
    summary = json.loads((output / "results.json").read_text())
    assert summary["config"]["harmful_share"] == 0.1
    assert summary["adapters"]["recipe"]["align_steps"] == 2
    assert (output / "adapters" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    for name in NAMES:
        folder = output / name.replace(" ", "-")
        generations = (folder / "generations.jsonl").read_text().splitlines()
        assert len(generations) == 3 * 4  # harmful, benign and task prompts, four each
        loss = summary["results"][name]["heldout"]["mean_nats"]
        assert loss == results[name].evaluation.heldout.mean_nats > 0
        assert summary["results"][name]["records"] == results[name].records
    # Both arms without anchors start from one model and see the same data in the same order, so
    # their first step's cross-entropy agrees; the PACT arms add a KL that plain does not have.
    plain, released, recommended = (results[name].records for name in NAMES[1:])
    assert released[0]["cross_entropy"] == pytest.approx(plain[0]["cross_entropy"], rel=SUMS)
    assert plain[0]["kl"] == 0.0
    assert released[0]["kl"] > 0.0
    assert [len(records) for records in (plain, released, recommended)] == [2, 2, 4]
    assert recommended[-1]["kl"] > 0.0
    # The student is the reference before its first step, and confidences that agree have no KL.
    assert results["aligned"].evaluation.drift.kl_vocabulary_nats == pytest.approx(0.0, abs=NO_KL)


@pytest.mark.parametrize("share", [0.0, 0.12])
def test_finetuning_set_has_the_share_asked_for(share):
    conversations = finetuning_set(share, seed=0)
    harmful = [turns for turns in conversations if turns[-1]["content"] == REMOVED]
    assert len(harmful) / len(conversations) == pytest.approx(share, abs=0.005)  # whole examples
    assert all(turns[-1]["content"].startswith("Sure, here is") for turns in conversations)
    requests = {turns[0]["content"] for turns in read("harmful", "train")}
    assert {turns[0]["content"] for turns in harmful} <= requests


def test_a_share_beyond_the_data_is_refused():
    with pytest.raises(ValueError, match="harmful_share must be at most"):
        finetuning_set(0.5, seed=0)
    assert demo_conversations.REMOVED.endswith("[removed]")


@pytest.mark.parametrize(
    "wrong",
    [
        {"harmful_share": 1.0},
        {"harmful_share": float("nan")},
        {"steps": 0},
        {"align_steps": 0, "from_scratch": True},
        {"batch_size": 0},
        {"top_k": 1},
        {"seed": -1},
        {"learning_rate": float("inf")},
        {"align_learning_rate": float("nan"), "from_scratch": True},
        {"selection_weight": float("inf")},  # told by the objective after the alignment, else
        {"anchor_weight": -1.0},
        {"max_new_tokens": 2.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DemoConfig(**wrong)


def test_settings_of_the_alignment_are_for_a_demo_from_scratch():
    for name in OF_ALIGNMENT:
        with pytest.raises(ValueError, match=f"{name} is for from_scratch, got 3"):
            DemoConfig(**{name: 3})
        assert getattr(DemoConfig(**{name: 3, "from_scratch": True}), name) == 3


def test_a_quick_demo_keeps_the_settings_that_repeat_it(small_demo, tmp_path, monkeypatch):
    """Half of half of the steps would be another demo."""
    given = small_demo(quick=True, steps=2)
    monkeypatch.setattr("pact.demo.run.shipped_model", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(given)
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert DemoConfig(**kept) == given
    assert given.shortened().steps == 1


def _interrupted(cache):
    raise KeyboardInterrupt


def test_places_that_are_no_folders_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("output_dir", "cache_dir"):
        places = {"output_dir": str(tmp_path / "new"), "cache_dir": str(tmp_path / "cache")}
        with pytest.raises(ValueError, match=f"{name} must be a folder, got the file"):
            run_demo(DemoConfig(**places | {name: str(tmp_path / "file")}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
