from __future__ import annotations

import math

import pytest
import torch

from pact.data.template import IGNORE, encode
from pact.evaluation.heldout import exact_match, perplexity
from tests.evaluation.scripted import scripted_llama
from tests.rounding import STATES, SUMS
from tests.tiny import tiny_llama, tiny_tokenizer


def pair(prompt: str, *answers: str) -> list[dict[str, str]]:
    """A conversation in which `prompt` is asked again before every answer."""
    turns = []
    for answer in answers:
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return turns


PAIRS = [
    pair("What is the capital of France?", "Paris"),
    pair("Hi", "Hello, who are you?", "I said so."),  # two answers
    pair("Bake!", "Sure, here is how to bake a loaf of bread."),
]


def dense_losses(model: torch.nn.Module) -> torch.Tensor:
    """-log P of every answer token by the model's own logits, one conversation at a time."""
    losses = []
    for turns in PAIRS:
        encoded = encode(turns, tiny_tokenizer())
        ids, labels = (torch.tensor([values]) for values in encoded)
        with torch.no_grad():
            log_p = model.double()(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        target = labels[0, 1:]
        kept = target != IGNORE
        losses.append(-log_p[kept].gather(1, target[kept, None])[:, 0])
    return torch.cat(losses)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_perplexity_is_the_dense_formula(batch_size: int) -> None:
    losses = dense_losses(tiny_llama())
    loss = perplexity(tiny_llama(), tiny_tokenizer(), PAIRS, batch_size=batch_size, progress=False)
    assert loss.tokens == losses.numel()
    assert loss.mean_nats == pytest.approx(losses.mean().item(), rel=SUMS)
    assert loss.perplexity == pytest.approx(math.exp(losses.mean().item()), rel=STATES)


def test_perplexity_of_cut_conversations_counts_what_is_left() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    whole = perplexity(model, tokenizer, PAIRS[2:], batch_size=1, progress=False)
    length = len(encode(PAIRS[2], tokenizer).input_ids)
    cut = perplexity(
        model, tokenizer, PAIRS[2:], batch_size=1, max_length=length - 4, progress=False
    )
    assert cut.tokens == whole.tokens - 3  # the newline after the end of turn was no answer token


def test_exact_match_ignores_whitespace_alone() -> None:
    conversations = [
        pair("a", "The capital of France is Paris"),
        pair("b", "  The capital\n of France  is Paris\n"),
        pair("c", "The capital of France is Paris."),
        pair("d", "The capital of France is"),  # the answer goes on
    ]
    model = scripted_llama("The capital of France is Paris")
    found = exact_match(model, tiny_tokenizer(), conversations, batch_size=3, progress=False)
    assert found.matches == [True, True, False, False]
    assert (found.rate.successes, found.rate.n) == (2, 4)
    assert found.rate.low < 0.5 < found.rate.high
    assert found.answers == ["The capital of France is Paris"] * 4
    assert found.expected[1] == "  The capital\n of France  is Paris\n"


def test_exact_match_sees_that_an_answer_goes_on() -> None:
    model = scripted_llama("Paris is the capital of France")
    found = exact_match(model, tiny_tokenizer(), [pair("a", "Paris")], batch_size=1, progress=False)
    assert found.matches == [False]


def test_exact_match_needs_an_answer_to_match() -> None:
    conversations = [PAIRS[0], PAIRS[0][:1]]
    with pytest.raises(ValueError, match="got 'user' last in conversation 1"):
        exact_match(tiny_llama(), tiny_tokenizer(), conversations, batch_size=1, progress=False)
