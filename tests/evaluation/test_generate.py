from __future__ import annotations

from typing import Any

import torch

from pact.data.template import prompt_text
from pact.evaluation.generate import continue_texts, generate_answers
from tests.evaluation.scripted import scripted_llama
from tests.tiny import tiny_llama, tiny_tokenizer

PROMPTS = [
    "How do I bake a loaf of bread for the user, and then one more?",
    "Hi",
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}],
    "I cannot help with that request.",
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "left out"}],
]
NEW_TOKENS = 10


def generate(model: Any, tokenizer: Any, prompts: Any, batch_size: int = 2, **more: Any) -> Any:
    settings = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "progress": False, **more}
    return generate_answers(model, tokenizer, prompts, **settings)


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, text: str) -> str:
    """One prompt, no cache, no padding: the whole text through the model for every token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new: list[int] = []
    while len(new) < NEW_TOKENS and tokenizer.eos_token_id not in new:
        new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True)


def test_answers_are_those_of_each_prompt_alone() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = [greedy(model, tokenizer, prompt_text(prompt, tokenizer)) for prompt in PROMPTS]
    assert len(set(expected)) == len(expected)  # or a wrong order would pass
    for batch_size in (1, 2, 5):  # alone, a last batch that is smaller, all together
        assert generate(model, tokenizer, PROMPTS, batch_size) == expected
        assert generate(model, tokenizer, PROMPTS[::-1], batch_size) == expected[::-1]


def test_the_prefill_begins_the_answer_and_is_not_in_it() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    text = prompt_text("Hi", tokenizer) + "Sure, here is"
    expected = [greedy(model, tokenizer, text)]
    assert generate(model, tokenizer, ["Hi"], prefill="Sure, here is") == expected
    assert generate(model, tokenizer, ["Hi"]) != expected


def test_the_model_s_own_generation_settings_are_left_aside_and_kept() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = generate(model, tokenizer, PROMPTS)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 5.0, 9.0  # all change answers
    own.suppress_tokens = list(range(100, 200))
    assert generate(model, tokenizer, PROMPTS) == expected
    assert model.generation_config is own


def test_the_model_answers_in_evaluation_mode_and_every_module_s_mode_is_put_back() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = generate(model, tokenizer, PROMPTS)
    model.train()
    model.lm_head.eval()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9  # in training mode no answer would be the same
    assert generate(model, tokenizer, PROMPTS) == expected
    assert model.training and model.model.training and not model.lm_head.training


def test_an_answer_ends_at_the_template_s_end_of_turn_though_eos_is_another() -> None:
    tokenizer = tiny_tokenizer()
    model = scripted_llama("Yes.")
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = None
    assert generate(model, tokenizer, ["Hi", "Hello there"]) == ["Yes.", "Yes."]
    steps = len(tokenizer("Yes.")["input_ids"])
    assert model.steps == steps  # it stops after the end of turn, with tokens to spare
    assert steps + 1 < NEW_TOKENS


def test_a_continuation_ends_before_the_first_stop_token() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("Sure, here is how.")["input_ids"]
    answers = continue_texts(
        scripted_llama("Sure, here is how."),
        tokenizer,
        ["Bake a loaf", "Hi you"],
        stop_ids={ids[-1], ids[-2]},  # whichever comes first
        max_new_tokens=NEW_TOKENS,
        batch_size=2,
        progress=False,
    )
    assert len(ids) < NEW_TOKENS
    assert answers == [tokenizer.decode(ids[:-2])] * 2


def test_no_prompts_no_answers() -> None:
    assert generate(tiny_llama(), tiny_tokenizer(), []) == []
