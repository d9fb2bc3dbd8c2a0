"""`torch.compile`: whole graphs, one compilation for every number of rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig, LlamaForCausalLM

import pact_kernels as pk
from pact_kernels.types import Head
from tests.ops.compare import relative_error
from tests.ops.problem import problem
from tests.rounding import EXACT


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Student(torch.nn.Module):
    """A causal language model of transformers, one layer deep, and the loss on its states."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=301,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.2,  # far from uniform distributions
        )
        self.model = LlamaForCausalLM(config).double()

    def forward(self, input_ids: Tensor, target: Tensor, *kl: Any) -> Tensor:
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return pk.pact_loss(hidden, self.model.lm_head.weight, target, *kl, num_items=50).loss


def batch(sequences: int, length: int) -> tuple[Any, ...]:
    """Inputs of `Student.forward`: the first four positions of a sequence are prompt."""
    g = torch.Generator().manual_seed(length)
    input_ids = torch.randint(301, (sequences, length), generator=g)
    target = torch.randint(301, (sequences, length), generator=g)
    target[:, :4] = -100
    rows, token_ids = int((target != -100).sum()), torch.arange(5, 25)
    shape = rows, len(token_ids)
    full, post = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return (
        input_ids,
        target,
        token_ids,
        torch.rand(len(token_ids), generator=g, dtype=torch.float64),
        torch.arange(rows) % 9,
        pk.ReferenceLogits(full, post),
    )


class Embedded(torch.nn.Module):
    """The least that inductor has code to make for around the loss: its compiler takes a minute
    for a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(301, 32, dtype=torch.float64)
        self.head = torch.nn.Linear(32, 301, dtype=torch.float64)

    def forward(self, input_ids: Tensor, target: Tensor, *kl: Any) -> Tensor:
        hidden = torch.tanh(self.embedding(input_ids))
        head = Head(self.head.weight, self.head.bias)
        return pk.pact_loss(hidden, head.weight, target, *kl, num_items=50, **head.options).loss


@pytest.mark.parametrize(
    "module, backend",
    [
        (Student, "eager"),  # one graph of model and loss; what is made of it is Embedded's
        pytest.param(
            Embedded,
            "inductor",
            marks=pytest.mark.skipif(
                shutil.which("g++") is None, reason="inductor builds C++ for the CPU"
            ),
        ),
    ],
)
def test_a_model_and_the_loss_are_compiled_once_for_all_row_counts(
    module: type[torch.nn.Module], backend: str
) -> None:
    torch.manual_seed(0)
    student = module()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(student, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for sequences, length in ((2, 9), (3, 11), (4, 16), (2, 21)):
        args = batch(sequences, length)
        found = []
        for call in (student, compiled):
            student.zero_grad()
            loss = call(*args)
            loss.backward()
            found.append([loss.detach(), *(w.grad.clone() for w in student.parameters())])
        for eager, fast in zip(*found, strict=True):
            # Llama's norms and rotations run in fp32, whatever the weights are: each rounds by
            # 2^-24, and a layer's dozen of them reach a sum of 50 rows. 2^8 such of the largest.
            assert relative_error(fast, eager) <= 2.0**-16
        compilations.append(counter.frame_count)
    assert compilations[0] > 0
    assert len(set(compilations)) == 1  # none after the first number of rows


def graphs() -> dict[str, Callable[..., Any]]:
    p = problem(ignored=0.0)
    kl = (p.token_ids, p.token_weights, p.step)
    return {
        "linear_cross_entropy": lambda h, w: pk.linear_cross_entropy(
            h, w, p.target, reduction="none"
        ),
        "linear_logsumexp": lambda h, w: pk.linear_logsumexp(h, w),
        "selected_logits": lambda h, w: pk.selected_logits(h, w, p.token_ids),
        "selected_confidences": lambda h, w: pk.selected_confidences(h, w, p.token_ids),
        "pact_kl": lambda h, w: pk.pact_kl(h, w, *kl, p.states),
        "pact_kl over the vocabulary": lambda h, w: pk.pact_kl(
            h, w, *kl, p.logits(), over="vocabulary"
        ),
        "pact_loss": lambda h, w: pk.pact_loss(h, w, p.target, *kl, p.states, over="vocabulary"),
        "token_scores": lambda h, w: pk.token_scores(h, w, h.flip(0), w, p.step % 5),
    }


@pytest.mark.parametrize("name", list(graphs()))
def test_every_op_is_one_graph(name: str) -> None:
    """Dynamo and autograd's tracing; what inductor makes of it is the test above's."""
    p = problem(ignored=0.0)
    op = graphs()[name]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (op, compiled):
        hidden = p.hidden.clone().requires_grad_()
        weight = p.weight.clone().requires_grad_()
        out = call(hidden, weight)
        value = out[0] if isinstance(out, tuple) else out
        if value.requires_grad:
            value.sum().backward()
            gradients.append((value.detach(), hidden.grad, weight.grad))
        else:
            gradients.append((value,))
    for eager, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, eager, rtol=EXACT, atol=1e-14)


def test_a_compiled_op_still_looks_at_the_ids() -> None:
    p = problem()
    compiled = torch.compile(
        lambda ids: pk.selected_logits(p.hidden, p.weight, ids), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(ValueError, match="must lie in"):
        compiled(torch.tensor([3, 301]))
