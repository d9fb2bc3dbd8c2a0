"""What every test of the recipes shares."""

from __future__ import annotations

import pytest

from pact.recipes.recipe import Recipe, load_recipe

NAMES = ("gemma-2-9b", "llama-3.1-8b", "qwen2.5-7b")


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each recipe of the package."""
    return load_recipe(request.param)


@pytest.fixture
def llama() -> Recipe:
    return load_recipe("llama-3.1-8b")
