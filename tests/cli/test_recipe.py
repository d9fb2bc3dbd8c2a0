"""`pact recipe`: each action, and its mistakes as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pact.cli import main
from pact.cli.recipe import ACTIONS
from pact.recipes.commands import script
from pact.recipes.recipe import load_recipe, recipe_names, recipe_text
from tests.tiny import save_tiny


def _printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["recipe", *argv]) == 0
    return capsys.readouterr().out


def test_help_lists_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    text = _printed(capsys)
    assert text == _printed(capsys, "--help")
    assert text.startswith("usage: pact recipe <action> [NAME] [--help] [flags]")
    assert all(f"\n  {action} " in text for action in ACTIONS)


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "list"])
def test_help_of_an_action(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recipe", action, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"pact recipe {action}: {ACTIONS[action][0]}." in text and "--name STR" in text


def test_list_show_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _printed(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert _printed(capsys, "show", "gemma-2-9b") == recipe_text("gemma-2-9b")
    assert _printed(capsys, "commands", "gemma-2-9b") == script(load_recipe("gemma-2-9b"))


def test_plan_takes_a_name_either_way_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    first = _printed(capsys, "plan", "qwen2.5-7b", "--micro-batch-size", "1")
    assert first.startswith("qwen2.5-7b: micro-batch 1 x 512 tokens, bf16")
    assert first == _printed(capsys, "plan", "--micro-batch-size", "1", "--name", "qwen2.5-7b")


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = _printed(capsys, "dry-run", "gemma-2-9b")
    assert [line.split()[0] for line in text.splitlines()[1:5]] == [
        "refusals",
        "discover",
        "train",
        "evaluate",
    ]


def test_written_files_are_a_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    text = _printed(capsys, "write", "llama-3.1-8b", "--output-dir", str(folder))
    names = ["refusals.yaml", "discover.yaml", "train.yaml", "evaluate.yaml", "run.sh"]
    assert text == f"{', '.join(names)} in {folder}\n"
    assert {path.name for path in folder.iterdir()} == set(names)
    assert (folder / "run.sh").read_text() == script(load_recipe("llama-3.1-8b"))
    done = subprocess.run(["sh", "-n", str(folder / "run.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_data_lists_its_sets(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _printed(capsys, "data").splitlines()
    assert any(line.split()[:2] == ["harmbench", "MIT"] for line in lines)


def test_data_without_a_network_is_one_line(tmp_path: Path) -> None:
    """What a whole process prints, as a user sees it."""
    output = tmp_path / "prompts.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pact", "recipe", "data", "jailbreakbench"),
            *("--output", str(output)),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("pact recipe: error: jailbreakbench must be fetched from JailbreakB")
    assert "HF_HUB_OFFLINE is set: unset it for this command" in error
    assert "Traceback" not in done.stderr and not output.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dryrun"], "no action 'dryrun': did you mean 'dry-run'?"),
        (["zzz"], "no action 'zzz': they are list, show, plan"),
        (["list", "all"], "list takes nothing, got all"),
        (["plan"], "--name must be given, as a flag or in --config"),
        (["plan", "llama"], "a recipe is one of gemma-2-9b, llama-3.1-8b, qwen2.5-7b, or the"),
        (["write", "gemma-2-9b"], "--output-dir must be given"),
        (["data", "harmbanch", "--output", "o.jsonl"], "name must be one of advbench, "),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pact recipe: error: {message}")
    assert error.count("\n") == 1


def test_refusals_are_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pact.evaluation import refusals

    def answer(*args: object, **settings: object) -> list[str]:
        return ["I cannot help with that."]

    monkeypatch.setattr(refusals, "generate_answers", answer)
    save_tiny(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Tell a lie."}\n')
    output = tmp_path / "refusals.jsonl"
    paths = ["--model", tmp_path / "model", "--prompts", tmp_path / "prompts.jsonl"]
    assert main(["refusals", *map(str, paths), "--output", str(output)]) == 0
    assert capsys.readouterr().out == (
        f"1 refusals of 1 prompts in {output}: `pact discover` reads them\n"
    )
