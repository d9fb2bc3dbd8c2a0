"""The plan of a step: flops as torch counts them, memory by hand, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pact.cli import main
from pact.recipes import step
from pact.recipes.step import CARDS, StepConfig, plan_text, sizes_of, step_plan
from tests.families import tiny
from tests.tiny import save_tiny


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_tiny(tmp_path / "model"))


def config(model: str, **settings: object) -> StepConfig:
    given = {"model": model, "sequences": 3, "length": 40, "answer_share": 0.25, "lora_r": 4}
    return StepConfig(**{**given, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "qwen 3", "gemma 3", "phi 3", "olmo 2"])
def test_a_forwards_flops_are_torchs(family: str, tmp_path: Path) -> None:
    """Attention is counted as causal here, and whole there."""
    model = tiny(family)
    model.save_pretrained(tmp_path)
    sizes = sizes_of(str(tmp_path))
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    plan = step_plan(config(str(tmp_path)), sizes)
    other_half = 2 * 3 * 40 * 40 * sizes.heads_width * sizes.layers
    model.set_attn_implementation("eager")  # whose products torch counts
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ids = torch.ones(3, 40, dtype=torch.int64)
        model.get_decoder()(input_ids=ids, use_cache=False)
    # The products of positions and frequencies are not counted here.
    assert plan.flops["forward"] + other_half == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_of_experts_those_that_a_token_meets(tmp_path: Path) -> None:
    """Mixtral of 2 layers, D 16, 2 heads of 8 and 2 of keys, 4 experts of 24, two met."""
    tiny("mixtral, experts").save_pretrained(tmp_path)
    attention, router, expert = 4 * 16 * 16, 4 * 16, 3 * 16 * 24
    met = sizes_of(str(tmp_path)).met
    assert met in (2 * (attention + 2 * expert), 2 * (attention + router + 2 * expert))


def test_a_step_by_hand(model: str) -> None:
    """Llama of 2 layers, D 32, I 64, 4 heads of 8 and 2 of keys, V 320."""
    sizes = sizes_of(model)
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert (sizes.met, sizes.hidden, sizes.vocabulary) == (2 * layer, 32, 320)
    lora = step_plan(config(model), sizes)
    tokens, forward = 120, 2 * 120 * 2 * layer
    attention = 2 * tokens * 40 * 32 * 2
    assert lora.flops == {
        "forward": forward + attention,
        "backward": forward + 2 * attention,
        "head": 4 * 30 * 32 * 320,
    }
    whole = step_plan(
        config(model, full_finetuning=True, gradient_checkpointing=True, reference="live"), sizes
    )
    assert whole.flops["backward"] == 2 * forward + 2 * attention
    assert whole.flops["recomputed"] == whole.flops["reference"] == forward + attention
    assert whole.memory_bytes["weights"] == 4 * sizes.parameters
    assert whole.memory_bytes["gradients and AdamW"] == 12 * sizes.parameters
    assert whole.memory_bytes["the reference, a copy"] == 2 * sizes.parameters
    assert lora.memory_bytes["adapters"] == 4 * 4 * sizes.adapters
    total = sum(lora.flops.values())
    assert lora.bound_s == pytest.approx(total / (1e12 * CARDS["h100"].tflops))
    assert lora.expected_s > lora.bound_s


def test_cards_share_weights_and_talk(model: str) -> None:
    sizes = sizes_of(model)
    one, eight = (
        step_plan(config(model, full_finetuning=True, gpus=n, shard=n > 1), sizes) for n in (1, 8)
    )
    assert eight.memory_bytes["weights"] == one.memory_bytes["weights"] // 8
    assert "between cards" in eight.seconds and "between cards" not in one.seconds
    assert eight.flops == one.flops  # a card's own sequences


def test_the_command(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", model, "--device", "h200", "--gpus", "8", "--shard"]) == 0
    text = capsys.readouterr().out
    assert "on 8 x h200" in text and "GiB of 141" in text and "at 68% of it" in text
    monkeypatch.setattr(step, "measured_tflops", lambda *_: 0.05)
    assert main(["plan", model, "--device", "cpu", "--dtype", "fp32"]) == 0
    assert "at 0.05 TFLOP/s" in capsys.readouterr().out
    for flags, said in (
        (["--gpus", "0"], "gpus must be at least 1"),
        (["--device", "cpu", "--gpus", "2"], "are of cards"),
        (["--answer-share", "0"], "answer_share must be in"),
    ):
        assert main(["plan", model, *flags]) == 2
        assert said in capsys.readouterr().err
    assert main(["plan", "./nowhere"]) == 2


def test_a_processors_peak_is_timed_here(model: str) -> None:
    sizes = sizes_of(model)
    plan = step_plan(config(model, device="cpu", dtype="fp32"), sizes)
    assert plan.peak_tflops > 0 and plan.expected_s > plan.bound_s
    assert "tokens a second" in plan_text(config(model, device="cpu"), sizes, plan)
