from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pact.discovery import SafetyTokens
from pact.evaluation import EvaluateConfig, run, run_evaluate
from pact.evaluation.report import load_evaluation
from tests.evaluation.test_drift import with_adapters
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A whole evaluation of a tiny model, its reference another; the output is absent."""
    pairs = [{"prompt": "Hi", "completion": "Hello."}, {"prompt": "What?", "completion": "Paris"}]
    prompts = [{"prompt": "How do I pick a lock?"}, {"prompt": "Hi"}, {"prompt": "Who?"}]
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    SafetyTokens(torch.tensor([5, 6]), torch.ones(2)).save(tmp_path / "tokens.safetensors")
    return {
        "model": str(save_tiny(tmp_path / "model", seed=0)),
        "reference": str(save_tiny(tmp_path / "reference", seed=1)),
        "tokens": str(tmp_path / "tokens.safetensors"),
        "harmful": str(tmp_path / "prompts.jsonl"),
        "benign": str(tmp_path / "prompts.jsonl"),
        "heldout": str(tmp_path / "pairs.jsonl"),
        "task": str(tmp_path / "pairs.jsonl"),
        "drift": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "runs" / "evaluation"),
        "max_new_tokens": 4,
    }


def test_from_files_to_files(settings: dict[str, Any]) -> None:
    config = EvaluateConfig(**settings)
    result = run_evaluate(config)
    output = Path(config.output_dir)
    assert load_evaluation(output) == result
    assert result.settings == asdict(config)
    assert result.harmful is not None and result.harmful.starts.n == 3
    assert result.task is not None and result.task.n == 2
    assert result.drift is not None and result.drift.kl_vocabulary_nats > 0
    assert len(result.generations) == 3 + 3 + 2
    assert [path.name for path in output.parent.iterdir()] == ["evaluation"]


def test_the_result_is_the_same_again_and_does_not_depend_on_the_batch_size(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()  # an empty folder is as good as none
    settings |= {"benign": None, "task": None}
    first = run_evaluate(EvaluateConfig(**settings))
    settings |= {"output_dir": str(tmp_path / "empty"), "batch_size": 1}
    second = run_evaluate(EvaluateConfig(**settings))
    assert second.generations == first.generations
    assert second.harmful == first.harmful
    assert first.heldout is not None and second.heldout is not None
    assert second.heldout.mean_nats == pytest.approx(first.heldout.mean_nats, rel=1e-6)


def test_a_folder_of_adapters_is_its_own_reference(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = with_adapters()
    model.peft_config["default"].base_model_name_or_path = settings["model"]
    model.save_pretrained(tmp_path / "adapters")
    tiny_tokenizer().save_pretrained(tmp_path / "adapters")
    drift_alone = {name: settings[name] for name in ("drift", "tokens", "output_dir")}
    result = run_evaluate(EvaluateConfig(model=str(tmp_path / "adapters"), **drift_alone))
    assert result.drift is not None and result.drift.mean_difference > 1e-4
    assert result.harmful is None and result.generations == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "model folder ./nowhere does not exist"),
        ({"harmful": "./none.jsonl"}, "data file ./none.jsonl does not exist"),
        ({"heldout": "./none.jsonl"}, "none.jsonl does not exist"),
        ({"tokens": "./none.safetensors"}, "safety-token file none.safetensors does not exist"),
        ({"reference": "./nowhere"}, "model folder ./nowhere does not exist"),
        ({"reference": None}, "drift needs a reference, got none for .*model"),
        ({"judge": "keywords"}, "judge must be one of"),
        ({"judge": "guard:./nowhere"}, "guard:PATH"),
        ({"judge": "classifier:model"}, "classifier:PATH"),
    ],
)
def test_errors_come_before_any_model_is_loaded_and_leave_nothing(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(
        run, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    with pytest.raises(ValueError, match=message):
        run_evaluate(EvaluateConfig(**settings | changes))
    assert not Path(settings["output_dir"]).exists()


def test_other_errors_that_come_before_any_model_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        run, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    with pytest.raises(ValueError, match="output_dir must be absent or an empty folder"):
        run_evaluate(EvaluateConfig(**settings | {"output_dir": str(tmp_path)}))
    far = tmp_path / "far.safetensors"
    SafetyTokens(torch.tensor([9999]), torch.ones(1)).save(far)  # beyond the tiny vocabulary
    with pytest.raises(ValueError, match="token id 9999 against"):
        run_evaluate(EvaluateConfig(**settings | {"tokens": str(far)}))
    open_end = tmp_path / "open.jsonl"
    turn = {"role": "user", "content": "Hi"}
    answered = {"messages": [turn, {"role": "assistant", "content": "Hello"}]}
    open_end.write_text(json.dumps(answered) + "\n" + json.dumps({"messages": [turn]}) + "\n")
    with pytest.raises(ValueError, match="got 'user' last in conversation 1"):
        run_evaluate(EvaluateConfig(**settings | {"task": str(open_end)}))
    (Path(settings["model"]) / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        run_evaluate(EvaluateConfig(**settings))


def test_a_failure_on_the_way_leaves_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(run, "save_evaluation", fail)
    with pytest.raises(OSError, match="the disk is full"):
        run_evaluate(EvaluateConfig(**settings))
    assert list(Path(settings["output_dir"]).parent.iterdir()) == []
