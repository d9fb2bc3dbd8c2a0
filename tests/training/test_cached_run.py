"""A run whose reference comes from disk: the same training, and no reference at any step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pact.cli import main
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.reference import AdaptersOff, CachedReference, fill_cache
from pact.training import FitConfig, TrainConfig, fit, train
from pact.training.run import fill
from pact.training.student import make_trainable
from tests.objectives import matching
from tests.rounding import SUMS
from tests.tiny import save_tiny, tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations, problem

EXAMPLES = 12  # with 4 to a step, three steps an epoch


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `TrainConfig` needs to find: a model, data and tokens."""
    folder = tmp_path_factory.mktemp("files")
    rows = [json.dumps({"messages": turns}) for turns in conversations(EXAMPLES)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens.safetensors")
    return {
        "model": str(save_tiny(folder / "model")),
        "train_file": str(folder / "train.jsonl"),
        "tokens": str(folder / "tokens.safetensors"),
        "batch_size": 4,
        "epochs": 2,
        "learning_rate": 1e-2,
        "max_length": 200,
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each batch that the live reference runs."""
    found: list[int] = []
    live = AdaptersOff.__call__

    def counted(self: AdaptersOff, batch: Any) -> Any:
        found.append(len(batch["input_ids"]))
        return live(self, batch)

    monkeypatch.setattr(AdaptersOff, "__call__", counted)
    return found


def losses(config: TrainConfig, pact: PactConfig) -> list[float]:
    return [record["loss"] for record in train(config, pact).records]


@pytest.mark.parametrize(
    "batches",
    [{}, {"micro_batch_size": 1}, {"packing": True}],
    ids=["padded", "cut", "packed"],
)
@pytest.mark.parametrize(
    "pact",
    [PactConfig(), PactConfig(over="selection"), matching("vocabulary", gate=False)],
    ids=["recommended", "released", "vocabulary"],
)
def test_training_from_the_cache_is_training_live(
    pact: PactConfig,
    batches: dict[str, Any],
    files: dict[str, Any],
    tmp_path: Path,
    calls: list[int],
) -> None:
    options = {**files, **batches, "cache_dtype": "fp32"}
    cached = losses(TrainConfig(**options, output_dir=str(tmp_path / "cached")), pact)
    assert sum(calls) == EXAMPLES  # each once, in the filling
    live = losses(TrainConfig(**options, output_dir=str(tmp_path / "live"), cache=False), pact)
    assert cached == pytest.approx(live, rel=SUMS)
    assert cached[0] != pytest.approx(cached[-1], rel=1e-3)  # something was learnt


def test_a_second_run_reads_what_the_first_has_filled(
    files: dict[str, Any], tmp_path: Path, calls: list[int], reference_caches: Path
) -> None:
    released = PactConfig(over="selection")
    first = losses(TrainConfig(**files, output_dir=str(tmp_path / "a")), released)
    assert len(list(reference_caches.iterdir())) == 1
    calls.clear()
    assert losses(TrainConfig(**files, output_dir=str(tmp_path / "b")), released) == first
    assert calls == []


def test_other_settings_of_the_loop_share_a_cache_and_another_gate_does_not(
    files: dict[str, Any], tmp_path: Path, reference_caches: Path
) -> None:
    config = TrainConfig(**files, output_dir="unused")
    cache = fill(config, PactConfig(over="selection", kl_weight=3.0))
    assert fill(config, PactConfig(over="selection", kl_weight=1.0)).folder == cache.folder
    assert fill(config, PactConfig(over="selection", gate=False)).folder != cache.folder
    assert cache.bytes_per_row == 2 * 2 * len(TOKEN_IDS)  # two contexts in 16 bits
    assert not Path("unused").exists()


def test_a_margin_shares_a_cache_and_tokens_left_out_do_not(files: dict[str, Any]) -> None:
    """The margin raises what was read; a token of no positive weight has no column."""
    config = TrainConfig(**files, output_dir="unused")
    recommended = fill(config, PactConfig())
    assert recommended.bytes_per_row == 2 * int((TOKEN_WEIGHTS > 0).sum())
    assert fill(config, PactConfig(kl_margin=0.0)).folder == recommended.folder
    every = fill(config, PactConfig(positive_only=False))
    assert every.folder != recommended.folder
    assert every.bytes_per_row == 2 * len(TOKEN_IDS)


def test_the_command_fills_ahead_of_the_run(
    files: dict[str, Any], tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "kept")]
    for name, value in files.items():
        flags += ["--" + name.replace("_", "-"), str(value)]
    assert main(["cache", *flags]) == 0
    assert "rows of" in capsys.readouterr().out
    assert sum(calls) == EXAMPLES and not (tmp_path / "run").exists()
    assert main(["train", *flags]) == 0
    assert sum(calls) == EXAMPLES


def test_examples_seen_but_once_are_not_worth_a_cache(
    files: dict[str, Any], tmp_path: Path, calls: list[int], reference_caches: Path
) -> None:
    config = TrainConfig(**{**files, "epochs": 1}, output_dir=str(tmp_path / "run"))
    train(config, PactConfig(over="selection"))
    assert not reference_caches.exists()
    assert len(calls) > 0


def test_a_plain_run_has_nothing_to_cache(files: dict[str, Any]) -> None:
    config = TrainConfig(**{**files, "tokens": None}, output_dir="unused", method="plain")
    with pytest.raises(ValueError, match="method=plain has no reference to cache"):
        fill(config)


def test_a_stale_cache_stops_the_run_before_its_first_step(
    files: dict[str, Any], tmp_path: Path
) -> None:
    """One that another model filled, in the place of the student's own."""
    given, run = problem(PactConfig(over="selection")), TrainConfig(**files, output_dir="unused")
    student, other = (make_trainable(tiny_llama(seed=seed), run) for seed in (0, 1))
    reference, parts = AdaptersOff(other), (given.objective, given.collator)
    cache = fill_cache(given.dataset, reference, *parts, folder=tmp_path, progress=False)
    dataset = given.dataset.add_column("example", list(range(len(given.dataset))))
    stale = CachedReference(cache, is_student=True)
    with pytest.raises(ValueError, match="the cache is of another model or other data"):
        fit(student, dataset, given.objective, stale, given.collator, FitConfig(max_steps=1))
