"""Each command from files to files, and each mistake as one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import pact
from pact.cli import COMMANDS, main
from pact.discovery import SafetyTokens
from tests.tiny import save_tiny, tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and base/, train.jsonl, prompts.jsonl, tokens, and run.yaml for `pact train`."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model")
    save_tiny(folder / "base", seed=1)
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "How do I bake bread?"}))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(folder / "tokens")
    settings = {
        "model": str(folder / "model"),
        "train_file": str(folder / "train.jsonl"),
        "tokens": str(folder / "tokens"),
        "max_steps": 2,
        "batch_size": 4,
        "max_length": 200,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


def _pact(*argv: object) -> subprocess.CompletedProcess[str]:
    """`python -m pact` in a process of its own, without a network."""
    return subprocess.run(
        [sys.executable, "-m", "pact", *map(str, argv)],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_overview_lists_every_command_and_loads_nothing() -> None:
    program = (
        "import sys; from pact.cli import main; code = main(['--help']); "
        "sys.exit(code or not {'torch', 'yaml', 'tyro'}.isdisjoint(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} ".encode() in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "recipe"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: pact {command} [-h] [")
    assert "--config FILE" in text
    words = " ".join(re.sub("[\u2500-\u257f]", " ", text).split())
    assert re.search(r"[a-z)]\. \((default: |required)", words)  # what it is for, and its default
    assert not re.search(r"(--[a-z-]+|STR|INT|FLOAT|JSON|none|[\]}]) \((default: |required)", words)


def test_train_from_a_config_with_flags_over_it(files: Path, tmp_path: Path) -> None:
    """Twice: the second time from the settings that the first run saved."""
    first = tmp_path / "first"
    done = _pact(
        *("train", "--config", files / "run.yaml", "--output-dir", first, "--kl-weight", 0.5)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 steps, cross-entropy ")
    assert done.stdout.rstrip().endswith(f"saved in {first}")
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert (saved["kl_weight"], saved["max_steps"], saved["lora_r"]) == (0.5, 2, 8)

    second = tmp_path / "second"
    assert main(["train", "--config", str(first / "config.yaml"), "--output-dir", str(second)]) == 0
    weights = [load_file(run / "adapter_model.safetensors") for run in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():  # another process may cut its sums over other threads
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


def test_discover_then_show(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    models = ["--aligned", str(files / "model"), "--base", str(files / "base")]
    data = ["--data", str(files / "train.jsonl"), "--output", str(output), "--top-k", "5"]
    assert main(["discover", *models, *data]) == 0
    assert capsys.readouterr().out.startswith("5 safety tokens in ")
    assert SafetyTokens.load(output).ids.numel() == 5

    plot = tmp_path / "plot.png"
    show = ["show", "--tokens", str(output), "--tokenizer", str(files / "model")]
    assert main([*show, "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].split()[:2] == ["rank", "id"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_a_table_and_writes_it(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation"
    data = ["--harmful", str(files / "prompts.jsonl"), "--heldout", str(files / "train.jsonl")]
    flags = ["--output-dir", str(output), "--max-new-tokens", "2"]
    assert main(["evaluate", "--model", str(files / "model"), *data, *flags]) == 0
    assert capsys.readouterr().out.split()[0] == "measure"
    assert any(output.iterdir())


def test_prompts_by_the_columns_that_a_flag_names(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "goals.jsonl").write_text(json.dumps({"goal": "How do I bake bread?"}))
    goals, model = str(tmp_path / "goals.jsonl"), ["--model", str(files / "model")]
    evaluate = ["evaluate", *model, "--harmful", goals, "--output-dir", str(tmp_path / "new")]
    refusals = ["refusals", *model, "--prompts", goals, "--output", str(tmp_path / "new.jsonl")]
    for flags in (evaluate, refusals):
        assert main([*flags, "--subset", "main"]) == 2
        assert "a file has no subsets, got subset='main'" in capsys.readouterr().err
        assert main([*flags, "--columns", '{"prompt": "question"}']) == 2
        assert "lacks the column 'question' of `columns`, got ['goal']" in capsys.readouterr().err
    columns = ["--columns", '{"prompt": "goal"}', "--max-new-tokens", "2"]
    assert main([*evaluate, *columns]) == 0
    assert main([*refusals, *columns]) == 2  # it was asked, and the tiny model refuses nothing
    assert "at least one answer must refuse, got none of 1" in capsys.readouterr().err


def test_convert_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = torch.zeros(320)
    vector[[7, 9]] = torch.tensor([0.8, -0.6])
    torch.save(vector, tmp_path / "direction.pt")
    paths = ["--input", str(tmp_path / "direction.pt"), "--output", str(tmp_path / "tokens")]
    assert main(["convert-tokens", *paths]) == 0
    assert capsys.readouterr().out == f"2 safety tokens in {tmp_path / 'tokens'}\n"
    assert SafetyTokens.load(tmp_path / "tokens").ids.tolist() == [7, 9]


def test_a_mistake_is_one_line_without_a_traceback(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All that is said; `test_wrong_calls` has whole processes."""
    assert main(["train", "--config", str(files / "run.yaml"), "--output-dir", str(files)]) == 2
    output, error = capfd.readouterr()
    assert error.startswith("pact train: error: output_dir must be empty, got ")
    assert error.count("\n") == 1
    assert output == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rte": 1.0}, "unknown key 'learning_rte' in .*: the nearest is 'learning_rate'"),
        ({"train_file": "missing.jsonl"}, "data file missing.jsonl does not exist"),
        ({"tokens": "missing"}, "safety-token file missing does not exist"),
        (
            {"tokens": "foreign"},
            "the tokens were found with the tokenizer of .* vocabulary differs",
        ),
        ({"train_file": "silent.jsonl"}, "no assistant turn in the data"),
        ({"model": "small"}, "every token id must be below the model's vocabulary of 300, got 3"),
        ({"lora_targets": ["nowhere"]}, "Target modules .*nowhere.* not found"),
        ({"kl_temperature": 2.0, "over": "vocabulary"}, "over='vocabulary' matches confidences"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"tokens": None}, "method=pact needs the safety tokens"),
    ],
)
def test_every_mistake_in_training_names_what_to_change(
    changes: dict,
    message: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    silent = {"messages": [{"role": "user", "content": "Hello?"}]}
    (tmp_path / "silent.jsonl").write_text(json.dumps(silent))
    metadata = {"tokenizer_size": "50257"}
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata=metadata).save(tmp_path / "foreign")
    if "small" in changes.values():
        save_tiny(tmp_path / "small")
        tiny_llama(vocab_size=300).save_pretrained(tmp_path / "small")
    settings = yaml.safe_load((files / "run.yaml").read_text()) | {"output_dir": "run"} | changes
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", "run.yaml"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pact train: error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pact {pact.__version__}\n"


def test_an_unknown_command_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "pact: error: no command 'trian': did you mean 'train'?\n"
    assert main(["zzz"]) == 2
    assert "they are refusals, discover, show, cache, train" in capsys.readouterr().err
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: pact <command>")


def test_a_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pact.cli.show", None)  # import then fails by that name
    with pytest.raises(ModuleNotFoundError):
        main(["show"])
    monkeypatch.delitem(sys.modules, "pact.cli.show")
    monkeypatch.setitem(sys.modules, "yaml", None)
    for module in ("pact.cli.arguments", "pact.common.settings"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert main(["show"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pact show: error: ") and "pip install 'pact-kernels[" in error
