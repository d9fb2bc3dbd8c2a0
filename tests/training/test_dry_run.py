"""A dry run says what the run would do, refuses what it would refuse, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pact.cli import main
from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.training import inputs as inputs_module
from pact.training import run as run_module
from pact.training.config import TrainConfig
from pact.training.dry_run import describe
from tests.tiny import save_tiny
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dry")
    rows = [json.dumps({"messages": turns}) for turns in conversations(10)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens.safetensors")
    return {
        "model": str(save_tiny(folder / "model")),
        "train_file": str(folder / "train.jsonl"),
        "tokens": str(folder / "tokens.safetensors"),
        "output_dir": str(folder / "output"),
    }


def config(files: dict[str, str], **settings: Any) -> TrainConfig:
    return TrainConfig(**{**files, "batch_size": 4, "epochs": 2, "warmup_ratio": 0.5, **settings})


def test_the_plan_and_the_first_batch(files: dict[str, str]) -> None:
    text = describe(config(files), PactConfig())
    assert "10 examples" in text and "steps       6 of 4 examples, 3 an epoch" in text
    assert "cosine from 3e-05, 3 to warm up" in text
    assert "cross-entropy + 10 KL over the vocabulary, 6 safety tokens" in text  # the positive ones
    examples = text.split("is learnt:\n")[1]
    assert examples.count("<|im_start|>assistant\n[[I cannot. ") >= 4
    assert examples.count("<|im_end|>]]") == examples.count("[[")
    assert "<|im_start|>user\nquestion" in examples
    assert not Path(files["output_dir"]).exists()


def test_colours(files: dict[str, str]) -> None:
    text = describe(config(files, method="plain", tokens=None), PactConfig(), colour=True)
    assert "\x1b[32mI cannot. " in text and "[[" not in text
    assert "objective   cross-entropy\n" in text


@pytest.mark.parametrize(("pack_length", "lines"), [(4096, 1), (1, 4)])
def test_packed_lines(pack_length: int, lines: int, files: dict[str, str]) -> None:
    """All four examples in one line, or each in its own, none of whose text is lost."""
    apart = describe(config(files), PactConfig()).split("is learnt:\n")[1]
    given = config(files, packing=True, pack_length=pack_length)
    head, text = describe(given, PactConfig()).split("is learnt:\n")
    assert f"the first step's examples in {lines} packed lines, in brackets " in head
    for said in ("<|im_start|>user", "[[I cannot. "):
        assert text.count(said) == apart.count(said) >= 4


def test_what_the_run_refuses(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is loaded, as the run does."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this should not have been loaded")

    monkeypatch.setattr(inputs_module, "load_model", never)
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "probe.jsonl").write_text('{"prompt": ')
    own, missing = files["train_file"], str(tmp_path / "none.jsonl")
    for wrong, message in (
        ({"eval_file": missing}, "none.jsonl does not exist"),
        ({"eval_file": own, "probe_prompts": missing}, "none.jsonl does not exist"),
        (
            {"eval_file": own, "probe_prompts": str(tmp_path / "probe.jsonl")},
            "probe.jsonl, line 1: every line",
        ),
        ({"optimizer": "adamm"}, "optimizer 'adamm' cannot be had"),
        ({"report_to": ("tensorbored",)}, "installed, got 'tensorbored'"),
        ({"output_dir": str(tmp_path)}, "output_dir must be empty, got .* with files in it"),
        ({"output_dir": str(tmp_path / "note.txt")}, "output_dir must be a folder, got the file"),
        ({"output_dir": files["model"]}, "which is its model"),
        ({"output_dir": str(tmp_path), "resume": True}, "files of no run in it"),
    ):
        with pytest.raises(ValueError, match=message):
            describe(config(files, **wrong), PactConfig())


def test_a_resumed_run_must_be_the_same(files: dict[str, str], tmp_path: Path) -> None:
    """A dry run of its continuation compares settings and data, and leaves the folder as it was."""
    settings = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "eval_file": files["train_file"],
    }
    run_module.train(config(files, **settings))
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert "evaluation  10 examples, 0 requests" in describe(
        config(files, **settings, resume=True), PactConfig()
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    with pytest.raises(ValueError, match="must keep its settings, got seed=1"):
        describe(config(files, **settings, resume=True, seed=1), PactConfig())
    rows = Path(files["train_file"]).read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(rows[1:]))
    changed = settings | {"train_file": str(tmp_path / "fewer.jsonl"), "resume": True}
    with pytest.raises(ValueError, match="got another data than"):
        describe(config(files, **changed), PactConfig())


def test_the_command(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in files.items()]
    assert main(["train", *flags, "--dry-run"]) == 0
    assert "10 examples" in capsys.readouterr().out
    assert not Path(files["output_dir"]).exists()
    assert main(["train", *flags, "--dry-run", "--max-length", "2"]) == 2
    assert "at least one example must have an answer token" in capsys.readouterr().err
