"""A model's backbone and head give back its own logits, whatever its family does to them."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from pact.models import check_head, hidden_states, output_head
from pact.models.loading import load_model, load_tokenizer
from tests.families import FAMILIES, tiny
from tests.rounding import STATES
from tests.tiny import save_tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_head_gives_back_the_models_logits(family):
    model = tiny(family)
    check_head(model)
    ids = torch.randint(1, 40, (2, 9))
    head = output_head(model)
    states = hidden_states(model, ids, torch.ones_like(ids))
    logits = pk.selected_logits(states, head.weight, torch.arange(40), **head.options)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=STATES, atol=STATES)


def test_a_head_that_its_config_does_not_name_is_refused():
    class Doubled(type(tiny("llama"))):
        def forward(self, **given):
            out = super().forward(**given)
            out.logits = 2 * out.logits
            return out

    model = tiny("llama")
    model.__class__ = Doubled
    with pytest.raises(ValueError, match="logits of Doubled"):
        check_head(model)


def test_right_padding_does_not_reach_the_states():
    model = tiny("llama")
    ids = torch.randint(1, 40, (1, 6))
    padded = torch.cat((ids, torch.zeros(1, 3, dtype=torch.int64)), 1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    alone = hidden_states(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(hidden_states(model, padded, mask)[:, :6], alone)


def test_an_adapted_head_is_refused():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    with pytest.raises(ValueError, match="plain nn.Linear"):
        output_head(get_peft_model(tiny("llama"), lora))


def test_load_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(f"./{'nothing'}/here")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_model(tmp_path, dtype="int8")


def test_quantised_loading(tmp_path, monkeypatch):
    """bitsandbytes quantises; what is asked of it is looked at here."""
    import transformers
    from transformers import BitsAndBytesConfig

    import pact.models.loading as loading

    folder, asked = save_tiny(tmp_path / "model"), []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install"):
        load_model(folder, quantize="4bit")
    with pytest.raises(ValueError, match="one of 4bit, 8bit, got '2bit'"):
        load_model(folder, quantize="2bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(BitsAndBytesConfig, "post_init", lambda self: None)
    own = transformers.AutoModelForCausalLM.from_pretrained

    def load(path, *, quantization_config, **options):
        asked.append(quantization_config)
        return own(path, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    load_model(folder, dtype="bf16", quantize="4bit")
    load_model(folder, quantize="8bit")
    four, eight = asked
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4"
    assert four.bnb_4bit_use_double_quant and four.bnb_4bit_compute_dtype == torch.bfloat16
    assert eight.load_in_8bit
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="run `pact merge` first"):
        load_model(folder, quantize="4bit", merge_adapters=True)


def test_load_gives_an_evaluating_model_in_the_dtype_asked_for(tmp_path):
    folder = save_tiny(tmp_path / "model")
    model = load_model(folder, dtype="bf16")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_tokenizer(folder).pad_token_id is not None
