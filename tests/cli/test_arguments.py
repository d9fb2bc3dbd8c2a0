"""Dataclass -> flags and YAML keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pact.cli.arguments import parse
from pact.objective import PactConfig
from pact.training.config import CONFIG_FILE, FitConfig, TrainConfig, save_configs


@dataclass(frozen=True, kw_only=True)
class Base:
    """What all runs share."""

    rate: float = 0.5
    """How fast, 100 % at most."""
    limit: int | None = 3
    """Most steps; unset has
    no limit.
    """


@dataclass(frozen=True, kw_only=True)
class Run(Base):
    """One run."""

    name: str
    """What it is called."""
    fast: bool = False
    """Whether it hurries."""
    careful: bool = True
    """Whether it looks."""
    kind: Literal["small", "large"] = "small"
    """Its size."""
    parts: tuple[str, ...] = ("a", "b")
    """What is in it."""
    folder: Path = Path("out")
    """Where it goes."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A second config."""

    depth: int = 2
    """How deep."""


def _run(*argv: str) -> Any:
    return parse("train", [Run, Extra], argv)[0]


def _yaml(tmp_path: Path, text: str) -> tuple[str, str]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return "--config", str(path)


def test_defaults_are_the_dataclass_defaults() -> None:
    run, extra = parse("train", [Run, Extra], ["--name", "x"])
    assert run == Run(name="x")
    assert extra == Extra()


def test_every_kind_of_flag() -> None:
    run, extra = parse(
        "train",
        [Run, Extra],
        "--name x --rate 1e-3 --limit 7 --fast --no-careful --kind large --parts c d e "
        "--folder here --depth 5".split(),
    )
    assert run == Run(
        name="x",
        rate=1e-3,
        limit=7,
        fast=True,
        careful=False,
        kind="large",
        parts=("c", "d", "e"),
        folder=Path("here"),
    )
    assert extra == Extra(depth=5)
    assert _run("--name", "x", "--limit", "none").limit is None


def test_yaml_sets_and_flags_override(tmp_path: Path) -> None:
    config = _yaml(
        tmp_path,
        "name: y\nrate: 3e-5\nlimit: null\nfast: true\nparts: [q]\nfolder: there\ndepth: 9\n",
    )  # YAML 1.1 reads 3e-5, which has no point, as a string
    run, extra = parse("train", [Run, Extra], [*config, "--no-fast", "--rate", "2"])
    assert run == Run(name="y", rate=2.0, limit=None, parts=("q",), folder=Path("there"))
    assert extra.depth == 9
    assert _run(*config).rate == 3e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rate: 1", "unknown key 'learning-rate' in .*: the nearest is "),
        ("dept: 1", "unknown key 'dept' in .*: the nearest is 'depth'"),
        ("7: 1", "unknown key 7 in "),
        ("limit: 2.5", "limit in .* must be int, got 2.5"),
        ("limit: true", "limit in .* must be int, got True"),
        ("fast: 1", "fast in .* must be bool, got 1"),
        ("fast: null", "fast in .* must be bool, got None"),
        ("rate: quick", "rate in .* must be float, got 'quick'"),
        ("kind: medium", r"kind in .* must be one of \('small', 'large'\), got 'medium'"),
        ("parts: q_proj", "parts in .* must be tuple, got 'q_proj'"),
        ("parts: [1]", "parts in .* must be str, got 1"),
        ("name: 12", "name in .* must be str, got 12"),
        ("- name", "must map names to values, got a list"),
        ("name: [", "must be YAML, got: "),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _run("--name", "x", *_yaml(tmp_path, text))


def test_a_missing_file_and_a_missing_setting_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config file .*none.yaml does not exist"):
        _run("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="--name must be given, as a flag or in --config"):
        _run()
    assert _run(*_yaml(tmp_path, "name: x")).name == "x"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nme", "x"], "unrecognized arguments: --nme x"),
        (["--na", "x"], "unrecognized arguments: --na x"),  # no guessing from a beginning
        (["--limit", "many"], "argument --limit: invalid int value: 'many'"),
        (["--kind", "huge"], "argument --kind: invalid choice: 'huge'"),
    ],
)
def test_a_wrong_flag_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        _run(*argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pact train: error: {message}")
    assert error.count("\n") == 1


def test_help_is_the_docstrings_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _run("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "--name STR What it is called. (required)",
        "--rate FLOAT How fast, 100 % at most. (default: 0.5)",
        "--limit INT Most steps; unset has no limit. (default: 3)",
        "--fast, --no-fast Whether it hurries. (default: off)",
        "--kind {small,large} Its size. (default: small)",
        "--parts STR [STR ...] What is in it. (default: a b)",
    ):
        assert line in text
    assert text.index("One run:") < text.index("What all runs share:") < text.index("A second")


def test_every_setting_of_training_has_help_and_a_name_of_its_own() -> None:
    names = [*TrainConfig.__dataclass_fields__, *PactConfig.__dataclass_fields__]
    assert len(names) == len(set(names))
    run = ["--model", "m", "--train-file", "t", "--output-dir", "o", "--tokens", "k"]
    train, pact = parse("train", [TrainConfig, PactConfig], run)
    assert (train.learning_rate, pact) == (FitConfig.learning_rate, PactConfig())


@pytest.mark.parametrize(
    "pact",
    [
        PactConfig(),
        PactConfig(over="selection"),
        PactConfig(kl_step_tau=math.inf, kl_weight=0.3, gate=True, positive_only=False),
    ],
    ids=["recommended", "released", "another"],
)
def test_a_saved_config_is_read_back(pact: PactConfig, tmp_path: Path) -> None:
    train = TrainConfig(
        model="m",
        train_file="t",
        output_dir="o",
        tokens="k",
        learning_rate=3e-5,
        max_steps=None,
        save_every=None,
        lora_targets=("q_proj", "o_proj"),
    )
    save_configs(tmp_path, (train, pact))
    read = parse("train", [TrainConfig, PactConfig], ["--config", str(tmp_path / CONFIG_FILE)])
    assert read == [train, pact]
    saved = (tmp_path / CONFIG_FILE).read_text()
    assert ("kl_step_tau: .inf\n" in saved) == (pact.kl_step_tau == math.inf)


@pytest.mark.parametrize(
    ("flags", "written", "meant"),
    [
        ("", "", PactConfig()),
        ("--over selection", "over: selection", PactConfig(over="selection")),
        ("--kl-step-tau inf", "kl_step_tau: .inf", PactConfig(kl_step_tau=math.inf)),
        ("--kl-step-tau none", "kl_step_tau: null", PactConfig()),  # unset
        ("--kl-margin 0", "kl_margin: 0", PactConfig(kl_margin=0.0)),
        (
            "--gate --no-positive-only",
            "gate: true\npositive_only: false",
            PactConfig(gate=True, positive_only=False),
        ),
        (
            "--over selection --no-gate --positive-only",
            "over: selection\ngate: false\npositive_only: true",
            PactConfig(over="selection", gate=False, positive_only=True),
        ),
    ],
)
def test_the_objective_on_the_command_line_and_in_yaml(
    flags: str, written: str, meant: PactConfig, tmp_path: Path
) -> None:
    """What is left unset follows `over`, wherever that was said."""
    path = tmp_path / "run.yaml"
    path.write_text(written)
    assert parse("train", [PactConfig], flags.split()) == [meant]
    assert parse("train", [PactConfig], ["--config", str(path)]) == [meant]
