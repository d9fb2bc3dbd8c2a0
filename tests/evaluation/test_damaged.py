"""A model that gives NaN, or has another tokenizer, is refused: its 0 % would pass for a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pact.data.dataset import encode_examples
from pact.discovery import DiscoverConfig, SafetyTokens, discover, run_discover
from pact.evaluation import EvaluateConfig, evaluate, run_evaluate
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from pact.models import check_head
from pact.reference import FrozenModel
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

PAIRS = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I cannot help."}]]
TOKENS = SafetyTokens(torch.tensor([5, 6]), torch.ones(2))


def nan_llama(name: str = "model.layers.0.mlp.down_proj.weight") -> Any:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"harmful": ["Hi"]}, "logits must be numbers, got NaN while it answered"),
        ({"benign": ["Hi"]}, "logits must be numbers"),
        ({"task": PAIRS}, "logits must be numbers"),
        ({"heldout": PAIRS}, "states must be finite, got NaN or infinity in held-out loss"),
        ({"drift": PAIRS, "tokens": TOKENS}, "states must be finite, got NaN or infinity in drift"),
    ],
)
def test_nan_is_no_evaluation(sets: dict[str, Any], message: str) -> None:
    sound, tokenizer = tiny_llama(), tiny_tokenizer()
    reference = FrozenModel(sound) if "drift" in sets else None
    options = {"max_new_tokens": 2, "progress": False, "reference": reference}
    assert evaluate(sound, tokenizer, **sets, **options)
    with pytest.raises(ValueError, match=message):
        evaluate(nan_llama(), tokenizer, **sets, **options)


def test_a_head_or_a_reference_of_nan_is_no_evaluation() -> None:
    """The states are sound; the loss and the drift are not."""
    head, tokenizer = nan_llama("lm_head.weight"), tiny_tokenizer()
    with pytest.raises(ValueError, match="held-out loss must be finite"):
        evaluate(head, tokenizer, heldout=PAIRS, progress=False)
    with pytest.raises(ValueError, match="drift must be finite"):
        evaluate(
            tiny_llama(),
            tokenizer,
            drift=PAIRS,
            tokens=TOKENS,
            reference=FrozenModel(nan_llama()),
            progress=False,
        )


def test_nan_finds_no_safety_tokens() -> None:
    dataset = encode_examples(PAIRS, tiny_tokenizer(), None)
    for models in ((nan_llama(), tiny_llama(seed=1)), (tiny_llama(), nan_llama())):
        with pytest.raises(ValueError, match="scores must be finite"):
            discover(*models, dataset, top_k=5, progress=False)


def test_logits_of_nan_are_said_once_a_model_is_loaded() -> None:
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM must be finite.* in float32"):
        check_head(nan_llama())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A model whose tokenizer has more tokens than it has embeddings, and data that use one."""
    folder = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    for name, word in (("pairs", "<beyond>"), ("within", "hello")):
        row = {"prompt": f"What is {word}?", "completion": f"I cannot say {word}."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return {"model": str(folder), "data": str(tmp_path / "pairs.jsonl")}


def test_a_tokenizer_with_more_tokens_is_refused_where_one_is_used(
    files: dict[str, str], tmp_path: Path
) -> None:
    model, data = files["model"], files["data"]
    run: dict[str, Any] = {"model": model, "output_dir": str(tmp_path / "out"), "max_new_tokens": 2}
    refused: list[Callable[[], Any]] = [
        lambda: run_evaluate(EvaluateConfig(**run, harmful=data)),
        lambda: run_evaluate(EvaluateConfig(**run, heldout=data)),
        lambda: write_refusals(
            RefusalsConfig(model=model, prompts=data, output=str(tmp_path / "out.jsonl"))
        ),
        lambda: run_discover(
            DiscoverConfig(aligned=model, base=model, data=data, output=str(tmp_path / "out"))
        ),
    ]
    for act in refused:
        with pytest.raises(ValueError, match="token ids? must be below the model.*got 320"):
            act()
    assert not list(tmp_path.glob("out*"))
    within = EvaluateConfig(**run, heldout=str(tmp_path / "within.jsonl"))
    assert run_evaluate(within).heldout is not None  # added tokens that are not used do no harm


def test_a_damaged_judge_is_noticed_before_anything_is_asked(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded after all answers are there."""
    values = tiny_llama().config.to_dict() | {"id2label": {0: "help", 1: "refusal"}}
    LlamaForSequenceClassification(LlamaConfig(**values)).save_pretrained(tmp_path / "classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "classifier")
    save_tiny(tmp_path / "guard")
    monkeypatch.setattr(
        "pact.evaluation.refusals.load_model", lambda *_, **__: pytest.fail("asked")
    )
    config = RefusalsConfig(
        model=files["model"],
        prompts=files["data"],
        output=str(tmp_path / "out.jsonl"),
        refusal_label="refusal",
    )
    for name in ("classifier", "guard"):
        (tmp_path / name / "model.safetensors").write_text("cut")
        with pytest.raises(ValueError, match="model.safetensors must be a whole safetensors file"):
            write_refusals(replace(config, judge=f"{name}:{tmp_path / name}"))


def test_a_classifier_without_its_own_head_is_refused(tmp_path: Path) -> None:
    from pact.evaluation.judges.registry import make_judge
    from pact.evaluation.judges.verdict import JudgeOptions

    folder = save_tiny(tmp_path / "judge")  # a language model
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "help", "1": "refusal"}}
    (folder / "config.json").write_text(json.dumps(config))
    judge = make_judge(f"classifier:{folder}", JudgeOptions(refusal_label="refusal"))
    with pytest.raises(ValueError, match=r"1 missing \(score.weight\), 1 beyond them \(lm_head"):
        judge([], ["Sure."])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"max_length": 1}, "max_length must be at least 2.*, got 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_llama(), tiny_tokenizer(), harmful=["Hi"], **change)
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(model="m", output_dir="o", harmful="h", **change)


def test_places_that_cannot_be_written_to_are_said_before_a_model_is_loaded(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pact.evaluation.run", "pact.evaluation.refusals", "pact.discovery.discover"):
        module = import_module(name)  # `discover` is a function, too
        monkeypatch.setattr(module, "load_tokenizer", lambda *_: pytest.fail("loaded"))
    model, data = files["model"], files["data"]
    below = str(Path(data) / "deep" / "out")  # in a file
    pair: dict[str, Any] = {"aligned": model, "base": model, "data": data}
    refused: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: run_evaluate(EvaluateConfig(model=model, harmful=data, output_dir=below)),
            "can be written to",
        ),
        (
            lambda: write_refusals(
                RefusalsConfig(model=model, prompts=data, output=below + ".jsonl")
            ),
            "can be written to",
        ),
        (lambda: run_discover(DiscoverConfig(**pair, output=below)), "can be written to"),
        (
            lambda: write_refusals(
                RefusalsConfig(model=model, prompts=data, output=data, overwrite=True)
            ),
            "which is prompts",
        ),
        (
            lambda: run_discover(DiscoverConfig(**pair, output=data, overwrite=True)),
            "which is data",
        ),
    ]
    before = Path(data).read_text()
    for act, message in refused:
        with pytest.raises(ValueError, match=message):
            act()
    assert Path(data).read_text() == before
