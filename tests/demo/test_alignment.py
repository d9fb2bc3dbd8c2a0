"""The demo's adapters: shipped or trained anew, one form; on their own base alone."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pact.demo import DemoConfig
from pact.demo.alignment import ADAPTERS, SHIPPED, WEIGHTS, aligned_adapters, read_facts, recipe
from pact.models.loading import load_model
from tests.tiny import save_tiny


def test_the_shipped_adapters_are_those_of_this_recipe_and_data():
    """A change of settings or data asks for new ones: `pact demo --from-scratch`, then copy."""
    facts = read_facts(SHIPPED)
    assert facts["recipe"] == recipe(DemoConfig(from_scratch=True))
    state = load_file(SHIPPED)
    layers = 30 * len(ADAPTERS["targets"])
    assert len(state) == 2 * layers
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert {min(value.shape) for value in state.values()} == {ADAPTERS["r"]}
    card = SHIPPED.with_name("ALIGNED.md").read_text(encoding="utf-8")
    assert facts["base_weights"] in card
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in card


def test_shipped_adapters_are_taken_as_training_wrote_them(trained, shipped, tmp_path):
    taken = aligned_adapters(DemoConfig(), shipped, tmp_path / "taken")
    assert (taken / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    names = [path.name for path in sorted(trained.iterdir())]
    assert [path.name for path in sorted(taken.iterdir())] == names
    config = json.loads((taken / "adapter_config.json").read_text())
    assert config == json.loads((trained / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (ADAPTERS["r"], ADAPTERS["alpha"])
    models = [load_model(folder, merge_adapters=True) for folder in (trained, taken)]
    ids = torch.arange(3, 9)[None]
    logits = [model(input_ids=ids).logits for model in (load_model(shipped), *models)]
    assert torch.equal(logits[1], logits[2])
    assert not torch.allclose(logits[0], logits[1])


def test_the_same_adapters_are_the_same_bytes(trained):
    """A second entry of the header would come before the first in half of the files."""
    with safe_open(trained / WEIGHTS, framework="pt") as file:
        assert list(file.metadata()) == ["facts"]


def test_another_base_is_one_error_before_anything_is_written(trained, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match="adapters are for the weights .* in .*other.*from_scratch"
    ):
        aligned_adapters(DemoConfig(), other, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_files_beside_the_adapters_stay(trained, shipped):
    """An output folder may be a place with a folder `adapters` of one's own."""
    (trained / "mine.txt").write_text("mine")
    aligned_adapters(DemoConfig(), shipped, trained)
    assert (trained / "mine.txt").read_text() == "mine"
