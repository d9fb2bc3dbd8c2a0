"""Dataclass -> flags and YAML keys."""

from __future__ import annotations

import io
import math
import re
import sys
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
    extras: dict[str, Any] | None = None
    """What else it takes."""
    loud: bool | None = None
    """Whether it is heard; unset asks."""


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
        '--extras {"a":[1,null]} --no-loud --depth=5'.split(),
    )
    assert run == Run(
        name="x",
        rate=1e-3,
        limit=7,
        fast=True,
        careful=False,
        kind="large",
        parts=("c", "d", "e"),
        extras={"a": [1, None]},
        loud=False,
    )
    assert extra == Extra(depth=5)
    assert _run("--name", "x", "--limit", "none").limit is None
    assert _run("--name", "none").name == "none"  # which cannot be unset
    assert _run("--name=-x", "--rate", "-1", "--parts").parts == ()


@pytest.mark.parametrize("flags", [["--limit", "5", "--limit", "none"], ["--limit=none"]])
def test_the_last_flag_holds_and_none_unsets_what_a_file_sets(
    flags: list[str], tmp_path: Path
) -> None:
    config = _yaml(tmp_path, "name: y\nlimit: 9\nextras: {a: 1}\nloud: true\nparts: [q]\n")
    run = _run(*flags, *config, "--extras", "none", "--no-loud", "--parts")
    assert run == Run(name="y", limit=None, loud=False, parts=())


def test_yaml_sets_and_flags_override(tmp_path: Path) -> None:
    config = _yaml(
        tmp_path,
        "name: y\nrate: 3e-5\nlimit: null\nfast: true\nparts: [q]\nextras: {b: c}\ndepth: 9\n",
    )  # YAML 1.1 reads 3e-5, which has no point, as a string
    run, extra = parse("train", [Run, Extra], [*config, "--no-fast", "--rate", "2"])
    assert run == Run(name="y", rate=2.0, limit=None, parts=("q",), extras={"b": "c"})
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
        ("rate: true", "rate in .* must be float, got True"),
        ("kind: medium", "kind in .* must be 'small' or 'large', got 'medium'"),
        ("kind: null", "kind in .* must be 'small' or 'large', got None"),
        ("parts: q_proj", "parts in .* must be a list, each text, got 'q_proj'"),
        ("parts: [1]", r"parts in .* must be a list, each text, got \[1\]"),
        ("parts: null", "parts in .* must be a list, each text, got None"),
        ("extras: [a]", r"extras in .* must be a mapping of names to values, got \['a'\]"),
        ("extras: {1: a}", "extras in .* must be a mapping of names to values, got {1: 'a'}"),
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
        (["--nme", "x"], "Unrecognized options: --nme, x. Perhaps you meant: --name STR What it"),
        (["--na", "x"], "Unrecognized options: --na, x. "),  # no guessing from a beginning
        (["--no-limit"], "Unrecognized options: --no-limit. "),
        (["x"], "Unrecognized options: x. "),
        (["--name"], "Missing value for argument '--name'. Expected 1 values. "),
        (["--limit", "many"], "Error parsing --limit: invalid literal for int() with base 10: 'm"),
        (["--kind", "huge"], "invalid choice 'huge' for argument '--kind'. Expected one of ("),
        (["--extras", "[1]"], "Error parsing --extras: must be a JSON object, got '[1]'. "),
        (["--extras", "[1"], "Error parsing --extras: must be a JSON object, got '[1' ("),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # with which tyro's boxes are drawn
def test_a_wrong_flag_is_one_line(
    argv: list[str], message: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stderr", said)
    with pytest.raises(SystemExit) as stop:
        _run(*argv)
    assert stop.value.code == 2
    line = said.getvalue()
    assert line.startswith(f"pact train: error: {message}")
    assert ". For full helptext, " in line and line.endswith("pact train --help\n")
    assert line.isascii() and "----" not in line and "  " not in line and line.count("\n") == 1


def test_help_is_the_docstrings_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _run("--help")
    assert stop.value.code == 0
    text = " ".join(re.sub("[\u2500-\u257f]|-{4,}", " ", capsys.readouterr().out).split())
    for line in (
        "pact train: fine-tune a chat model",
        "--config FILE YAML file of settings",
        "--name STR What it is called. (required)",
        "--rate FLOAT How fast, 100 % at most. (default: 0.5)",
        "--limit INT|none Most steps; unset has no limit. (default: 3)",
        "--fast, --no-fast Whether it hurries. (default: off)",
        "--careful, --no-careful Whether it looks. (default: on)",
        "--kind {small,large} Its size. (default: small)",
        "--parts [STR [STR ...]] What is in it. (default: a b)",
        "--extras JSON|none What else it takes. (default: none)",
        "--loud, --no-loud Whether it is heard; unset asks. (default: none)",
    ):
        assert line in text
    assert text.index("One run.") < text.index("What all runs share.") < text.index("A second")


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
