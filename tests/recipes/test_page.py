"""What docs/guides/recipes.md shows of the commands is what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pact.cli import main
from pact.cli.recipe import ACTIONS
from pact.recipes.recipe import recipe_names

PAGE = (Path(__file__).parents[2] / "docs/guides/recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ pact (.+)\n((?s:.*?))```", PAGE)


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_block_is_what_its_command_prints(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 0
    assert capsys.readouterr().out == output


def test_the_page_has_every_plan_and_every_action() -> None:
    shown = {command for command, _ in BLOCKS}
    assert {f"recipe plan {name}" for name in recipe_names()} <= shown
    assert all(f"pact recipe {action}" in PAGE for action in ACTIONS)
    assert "None was run here on the model it is for" in PAGE.replace("\n", " ")
