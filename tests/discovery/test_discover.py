"""Discovery on tiny models against the dense formula over the whole set in float64."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pact.data.dataset import encode_examples
from pact.discovery import DiscoverConfig, SafetyTokens, discover, run_discover
from pact.discovery.tokens import tokenizer_hash
from pact.models.loading import load_model
from pact.training.student import add_adapters
from tests.rounding import STATES, SUMS
from tests.tiny import VOCAB_SIZE, save_tiny, tiny_llama, tiny_tokenizer

TOP_K = 20
STEPS = 6  # shorter than the long answers, longer than the short ones
CONVERSATIONS = [
    ["How do I pick a lock?", "I cannot help with that request."],
    ["Hi", "No."],
    ["Tell me " + "more " * 9, "I'm sorry, but I can't assist with that."],
    ["Now?", "", "And now?", "No, I cannot.", "Please", "Never."],  # rows of all its answers count
    ["Why?", "That is unsafe, so I will not say how to do it."],
]
Pair = tuple[Any, Any]


def rows_of(*conversations: list[str]) -> Any:
    roles = ("user", "assistant")
    turns = [
        [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        for texts in conversations
    ]
    return encode_examples(turns, tiny_tokenizer(), None)


@pytest.fixture(scope="module")
def dataset() -> Any:
    return rows_of(*CONVERSATIONS)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_llama(seed=0), tiny_llama(seed=1)


def dense_scores(dataset: Any, mode: str, temperature: float) -> tuple[Tensor, Tensor]:
    """The formula with every logit, one sample at a time, unpadded, in float64."""
    aligned_model, base_model = (tiny_llama(seed=seed).double() for seed in (0, 1))
    differences, confidences = [], []
    for row in dataset:
        ids, labels = torch.tensor(row["input_ids"]), row["labels"]
        positions, step = [], 0
        for position in range(len(labels) - 1):
            step = 0 if labels[position] == -100 else step + 1
            if labels[position + 1] != -100 and step < STEPS:
                positions.append(position)
        with torch.no_grad():
            log_aligned, log_base = (
                (model(ids[None]).logits[0, positions] / temperature).log_softmax(-1)
                for model in (aligned_model, base_model)
            )
        aligned = log_aligned.exp()
        change = (
            aligned - log_base.exp() if mode == "p_diff" else aligned * (log_base - log_aligned)
        )
        differences.append(change.mean(0))
        confidences.append(aligned.mean(0))
    return torch.stack(differences).mean(0), torch.stack(confidences).mean(0)


def find(pair: Pair, dataset: Any, **options: Any) -> SafetyTokens:
    defaults = {"top_k": TOP_K, "max_response_length": STEPS, "progress": False}
    return discover(*pair, dataset, **defaults | options)


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_equals_the_dense_formula(pair: Pair, dataset: Any, mode: str, temperature: float) -> None:
    tokens = find(pair, dataset, mode=mode, temperature=temperature, max_tokens=150)
    difference, confidence = dense_scores(dataset, mode, temperature)
    expected = SafetyTokens.from_scores(difference, confidence, TOP_K)
    assert torch.equal(tokens.ids, expected.ids)
    torch.testing.assert_close(tokens.weights, expected.weights, rtol=STATES, atol=SUMS)
    assert tokens.aligned_confidence is not None
    torch.testing.assert_close(tokens.aligned_confidence, confidence[tokens.ids].float())
    if mode == "p_diff":
        assert tokens.base_confidence is not None
        base = (confidence - difference)[tokens.ids].float()
        torch.testing.assert_close(tokens.base_confidence, base, rtol=STATES, atol=1e-8)
    else:
        assert tokens.base_confidence is None


@pytest.mark.parametrize("max_tokens", [1, 200])  # every sample alone, some together
def test_batching_changes_nothing(pair: Pair, dataset: Any, max_tokens: int) -> None:
    whole, parts = (find(pair, dataset, max_tokens=size) for size in (100_000, max_tokens))
    assert torch.equal(whole.ids, parts.ids)
    torch.testing.assert_close(whole.weights, parts.weights, rtol=STATES, atol=SUMS)
    assert whole.metadata == parts.metadata


def test_padding_and_tokens_after_the_counted_steps_change_nothing(pair: Pair) -> None:
    prompt = "Why?"
    short, long = rows_of([prompt, "No, I will"]), rows_of([prompt, "No, I will not say so, ever"])
    shared = 4  # steps in which both answers have the same tokens
    answers = [[label for label in rows[0]["labels"] if label != -100] for rows in (short, long)]
    assert answers[0][:shared] == answers[1][:shared] and len(answers[0]) < len(answers[1])
    first, second = (find(pair, rows, max_response_length=shared) for rows in (short, long))
    assert torch.equal(first.ids, second.ids)
    torch.testing.assert_close(first.weights, second.weights, rtol=STATES, atol=SUMS)
    assert first.metadata["num_steps"] == second.metadata["num_steps"] == str(shared)


def test_metadata_say_where_the_tokens_come_from(pair: Pair, dataset: Any) -> None:
    tokenizer = tiny_tokenizer()
    metadata = find(pair, dataset, tokenizer=tokenizer).metadata
    steps = [
        min(STEPS, run) for row in dataset for run in _answer_lengths(row["labels"])
    ]  # six steps at most of every answer
    assert metadata["num_samples"] == "5"
    assert metadata["num_steps"] == str(sum(steps))
    assert metadata["vocab_size"] == metadata["tokenizer_size"] == str(VOCAB_SIZE)
    assert metadata["tokenizer_hash"] == tokenizer_hash(tokenizer)
    assert metadata["mode"] == "p_diff"
    assert metadata["aligned"] == metadata["base"] == "LlamaForCausalLM"  # made, not loaded
    assert {"top_k", "max_response_length", "temperature", "pact_version"} <= metadata.keys()


def _answer_lengths(labels: list[int]) -> list[int]:
    runs = "".join(" " if label == -100 else "x" for label in labels).split()
    return [len(run) for run in runs]


def test_samples_without_a_row_do_not_count(pair: Pair) -> None:
    row = rows_of(["Hi", "No."])[0]
    silent = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    with_silent, without = find(pair, [silent, row, silent]), find(pair, [row])
    assert with_silent.metadata["num_samples"] == "1"
    assert torch.equal(with_silent.ids, without.ids)
    with pytest.raises(
        ValueError, match="at least one sample must have an answer token.*none of 1"
    ):
        find(pair, [silent])


def test_models_that_cannot_be_compared_are_refused(pair: Pair, dataset: Any) -> None:
    aligned, base = pair
    with pytest.raises(ValueError, match="same vocabulary, got 320 .* and 321"):
        find((aligned, tiny_llama(VOCAB_SIZE + 1)), dataset)
    capped = tiny_llama(seed=1)
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="same soft cap, got None .* and 30.0"):
        find((aligned, capped), dataset)
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        find((aligned, tiny_llama(seed=1).train()), dataset)
    with pytest.raises(ValueError, match="at least two of the top_k=20 .* got 0"):
        find((aligned, aligned), dataset)
    with pytest.raises(ValueError, match="below the models' vocabulary of 320, got 320"):
        find(pair, [{"input_ids": [1, 320], "labels": [-100, 320]}])


def test_models_are_left_as_they_were(pair: Pair, dataset: Any) -> None:
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in pair]
    find(pair, dataset)
    for model, state in zip(pair, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "kl"}, r"mode must be 'p_diff' or 'pref_logratio', got 'kl'"),
        ({"top_k": 0}, "top_k must be at least 2, got 0"),
        ({"max_response_length": 0}, "max_response_length must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive and finite"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"dtype": "int8"}, "dtype must be 'fp32' or 'bf16' or 'fp16', got 'int8'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscoverConfig(aligned="a", base="b", data="d", output="o", **settings)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DiscoverConfig:
    """Two saved models and a data file; the output is not there yet."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer, *_ in CONVERSATIONS]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DiscoverConfig(
        aligned=str(save_tiny(folder / "aligned", seed=0)),
        base=str(save_tiny(folder / "base", seed=1)),
        data=str(folder / "data.jsonl"),
        output=str(folder / "tokens.safetensors"),
        top_k=TOP_K,
        max_response_length=STEPS,
    )


def test_run_discover_writes_what_it_returns(
    config: DiscoverConfig, pair: Pair, tmp_path: Path
) -> None:
    config = replace(config, output=str(tmp_path / "tokens.safetensors"))
    tokens = run_discover(config)
    loaded = SafetyTokens.load(config.output)
    assert torch.equal(loaded.ids, tokens.ids) and loaded.metadata == tokens.metadata
    loaded.check_tokenizer(tiny_tokenizer())
    in_memory = find(pair, rows_of(*[texts[:2] for texts in CONVERSATIONS]))
    assert torch.equal(tokens.ids, in_memory.ids)
    torch.testing.assert_close(tokens.weights, in_memory.weights, rtol=STATES, atol=SUMS)
    for name in ("aligned", "base", "data", "dtype", "seed"):
        assert tokens.metadata[name] == str(getattr(config, name))
    with pytest.raises(ValueError, match="must be a new file: name another, or set overwrite"):
        run_discover(config)
    fewer = run_discover(replace(config, overwrite=True, num_samples=2))
    assert fewer.metadata["num_samples"] == "2"
    assert SafetyTokens.load(config.output).metadata["num_samples"] == "2"


@pytest.fixture(scope="module")
def plain_run(config: DiscoverConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters on the aligned model, as a plain fine-tuning leaves them: without a tokenizer."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    model = add_adapters(load_model(config.aligned))
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=stream)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["named", "own base", "own tokenizer"])
def test_adapters_on_the_aligned_model_are_a_base(
    config: DiscoverConfig, plain_run: Path, tmp_path: Path, place: str
) -> None:
    """Merged; their tokenizer is their own or, where they have none, that of their base."""
    base = Path(shutil.copytree(plain_run, tmp_path / "base"))
    if place == "own base":
        shutil.copytree(config.aligned, base / "base")
        settings = json.loads((base / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = "gone/away"
        (base / "adapter_config.json").write_text(json.dumps(settings))
    if place == "own tokenizer":
        tiny_tokenizer().save_pretrained(base)
    output = str(tmp_path / "tokens.safetensors")
    tokens = run_discover(replace(config, base=str(base), output=output))
    merged = load_model(base, merge_adapters=True)
    in_memory = find((tiny_llama(seed=0), merged), rows_of(*[texts[:2] for texts in CONVERSATIONS]))
    assert torch.equal(tokens.ids, in_memory.ids)
    torch.testing.assert_close(tokens.weights, in_memory.weights, rtol=STATES, atol=SUMS)
    assert tokens.metadata["base"] == str(base)


def test_adapters_of_another_tokenizer_are_no_base(
    config: DiscoverConfig, plain_run: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(plain_run, tmp_path / "base"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base)
    with pytest.raises(ValueError, match="must share one tokenizer"):
        run_discover(replace(config, base=str(base), output=str(tmp_path / "tokens")))


@pytest.mark.parametrize(("scale", "warns"), [(1e-4, True), (1.0, False)])
def test_a_base_that_hardly_moved_is_warned_of(
    pair: Pair, dataset: Any, caplog: pytest.LogCaptureFixture, scale: float, warns: bool
) -> None:
    base = tiny_llama(seed=0)
    with torch.no_grad():
        for ours, theirs in zip(base.parameters(), pair[1].parameters(), strict=True):
            ours.lerp_(theirs, scale)
    find((pair[0], base), dataset)
    assert ("hardly differ" in caplog.text) == warns


def test_everything_is_checked_before_a_model_is_loaded(
    config: DiscoverConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(sys.modules[run_discover.__module__], "load_model", refuse)
    other = save_tiny(tmp_path / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    for change, message in [
        ({"output": str(tmp_path), "overwrite": True}, "must be a new file"),
        ({"data": str(tmp_path / "gone.jsonl")}, "does not exist"),
        ({"base": str(tmp_path / "gone")}, "model folder .* does not exist"),
        ({"base": str(other)}, r"one tokenizer, got other vocabularies .*320 tokens.*\(321\)"),
        ({"max_length": 3}, "within max_length=3, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_discover(replace(config, **change))


def test_more_tokens_than_the_vocabulary_are_refused_before_a_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = import_module("pact.discovery.discover")  # `discover` is a function, too
    monkeypatch.setattr(module, "mean_scores", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="at most the vocabulary's 320 tokens, got 321"):
        discover(tiny_llama(), tiny_llama(seed=1), [], top_k=321)
