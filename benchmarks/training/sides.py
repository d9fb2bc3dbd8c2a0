"""What is compared as a training step: plain fine-tuning, PACT, and the released algorithm.

Every side is a function that forms the loss of one batch with the same student, a model with LoRA
adapters in training mode; `take_step` makes a step of it.

Legend: B sequences, L positions, N answer rows, K selected tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import pact_kernels as pk
from benchmarks.cases.case import Inputs
from benchmarks.peers.cross_entropies import Liger
from benchmarks.peers.peer import installed_version
from benchmarks.peers.released import released_loss
from pact import PactConfig
from pact.data.collate import Collator
from pact.data.spans import IGNORE
from pact.models import hidden_states, output_head
from pact.objective import CrossEntropy, PactObjective
from pact.reference import AdaptersOff, CachedReference, ReferenceCache, fill_cache
from pact.training.checks import trainable_parameters
from pact.training.student import add_adapters, batch_loss

LossOf = Callable[[], Tensor]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]

NUM_TOKENS = 50
HEADER_TOKENS = 3
"""Tokens of the assistant header in ChatML: <|im_start|>, assistant, a line break."""
LEARNING_RATE = 1e-4


class Task(NamedTuple):
    """The examples of one step, and how they become a batch."""

    examples: Sequence[Mapping[str, Any]]
    """With `input_ids`, `labels`, and `example`, their place here."""
    collate: Collate
    """Makes a batch with post-only inputs."""
    device: torch.device | str = "cpu"
    """Where the batch is, but for the examples' places."""

    def collated(self, examples: Sequence[Mapping[str, Any]], gate: bool) -> dict[str, Tensor]:
        """A batch, without post-only inputs where the gate is off."""
        batch = self.collate(examples).items()
        return {name: value for name, value in batch if gate or not name.startswith("post_")}

    def batch(self, gate: bool = True) -> dict[str, Tensor]:
        batch = self.collated(self.examples, gate).items()
        return {name: x if name == "example" else x.to(self.device) for name, x in batch}


class Setting:
    """What all sides share: a model with adapters, put on in place, and safety tokens at random."""

    def __init__(self, model: Any, num_tokens: int = NUM_TOKENS) -> None:
        g = torch.Generator().manual_seed(0)
        vocabulary, device = output_head(model).weight.shape[0], output_head(model).weight.device
        self.student = add_adapters(model).train()
        token_ids = torch.randperm(vocabulary, generator=g)[:num_tokens].sort().values
        self.token_ids = token_ids.to(device)  # (K,) int64
        self.token_weights = torch.randn(num_tokens, generator=g).to(device)  # (K,)
        trained = trainable_parameters(self.student).values()
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    @cached_property
    def frozen(self) -> Any:
        """The aligned model once more, for the side that needs it in memory."""
        return copy.deepcopy(self.student).unload().eval().requires_grad_(False)

    @property
    def in_16_bits(self) -> bool:
        """Whether the model is, and its steps run under autocast."""
        return output_head(self.student).weight.dtype == torch.bfloat16

    def autocast(self) -> AbstractContextManager[Any]:
        """As the training loop runs a model in bfloat16."""
        device = output_head(self.student).weight.device.type
        return torch.autocast(device, torch.bfloat16, self.in_16_bits)

    def objective(self, over: Any, gate: bool) -> PactObjective:
        config = PactConfig(
            over=over,
            gate=gate,
            kl_weight=1.0,
            kl_step_tau=math.inf,
            kl_margin=0.0,
            positive_only=False,
        )
        return PactObjective(self.token_ids, self.token_weights, config)


def random_task(model: Any, sequences: int, length: int) -> Task:
    """Sequences of random tokens; the first half of each is its prompt."""
    g = torch.Generator().manual_seed(1)
    vocabulary = output_head(model).weight.shape[0]
    ids = torch.randint(0, vocabulary, (sequences, length), generator=g)  # (B, L)
    header = torch.randint(0, vocabulary, (HEADER_TOKENS,), generator=g)
    labels = ids.clone()
    labels[:, : length // 2] = IGNORE
    return Task(
        [{"example": n, "input_ids": ids[n], "labels": labels[n]} for n in range(sequences)],
        Collator(header.tolist(), pad_token_id=0),
        output_head(model).weight.device,
    )


def own_loss(setting: Setting, task: Task) -> LossOf:
    """Plain fine-tuning as transformers does it."""
    batch = task.batch(gate=False)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return lambda: setting.student(**inputs, use_cache=False).loss


def fused_loss(setting: Setting, task: Task) -> LossOf:
    """Plain fine-tuning with the package's cross-entropy on answer rows."""
    batch = task.batch(gate=False)
    return lambda: batch_loss(setting.student, CrossEntropy(), None, batch).loss


def pact_loss(setting: Setting, task: Task, over: str, gate: bool, cached: bool) -> LossOf:
    """PACT with the reference's values read from files, or with the student's backbone, adapters
    off, as the reference of every step.
    """
    objective, batch = setting.objective(over, gate), task.batch(gate)
    reference = (
        cached_reference(setting, task, over, gate) if cached else AdaptersOff(setting.student)
    )
    return lambda: batch_loss(setting.student, objective, reference, batch).loss


def cached_reference(setting: Setting, task: Task, over: str, gate: bool) -> CachedReference:
    """Over a cache of the task's examples, whose mapped files outlive their folder."""
    with tempfile.TemporaryDirectory() as folder:
        return CachedReference(fill(setting, task, folder, over=over, gate=gate))


def fill(
    setting: Setting, task: Task, folder: str, *, over: str, gate: bool, **options: Any
) -> ReferenceCache:
    """Run the reference on the task's examples as the package does before the first epoch."""
    return fill_cache(
        task.examples,
        AdaptersOff(setting.student),
        setting.objective(over, gate),
        partial(task.collated, gate=gate),
        folder=folder,
        progress=False,
        compute_dtype="bf16" if setting.in_16_bits else "fp32",
        **options,
    )


def released_side(setting: Setting, task: Task) -> LossOf:
    """The released algorithm: a second model in memory, two live forwards, full logits.

    Raises:
        ValueError: the head is more than a matrix.
    """
    head, gate, batch = output_head(setting.student), pk.GateConfig(), task.batch()
    if head.bias is not None or head.softcap is not None or head.logit_scale != 1.0:
        raise ValueError(
            "the released side needs a head that is a matrix alone, got one with a bias, a soft "
            "cap or a logit scale: choose another model"
        )
    frozen = setting.frozen
    target = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE).flatten()
    post_rows = batch["post_sequence"] * batch["post_input_ids"].shape[1] + batch["post_position"]

    def states(model: Any, kind: str = "") -> Tensor:
        ids, mask = batch[f"{kind}input_ids"], batch[f"{kind}attention_mask"]
        return hidden_states(model, ids, mask).flatten(0, 1)  # (B L, D)

    def forward() -> Tensor:
        hidden = states(setting.student)
        with torch.no_grad():
            full, post = states(frozen), states(frozen, "post_")
        inputs = Inputs(
            hidden=hidden,
            weight=head.weight,
            target=target,
            reference_hidden=full,
            reference_post=post,
            reference_weight=output_head(frozen).weight,
            step=batch["row_step"],
            token_ids=setting.token_ids,
            token_weights=setting.token_weights,
        )
        return released_loss(inputs, gate, post_rows)

    return forward


OWN, FUSED = "plain, transformers", "plain, fused"
CACHED, CACHED_VOCABULARY = "PACT cached, selection", "PACT cached, vocabulary, no gate"
LIVE, LIVE_NO_GATE = "PACT live, selection", "PACT live, selection, no gate"
RELEASED = "released algorithm"
READING = "reading the cache"
Side = Callable[[Setting, Task], LossOf]
"""Prepares what it needs for a batch, and returns its loss."""
SIDES: dict[str, Side] = {
    OWN: own_loss,
    FUSED: fused_loss,
    CACHED: partial(pact_loss, over="selection", gate=True, cached=True),
    CACHED_VOCABULARY: partial(pact_loss, over="vocabulary", gate=False, cached=True),
    LIVE: partial(pact_loss, over="selection", gate=True, cached=False),
    LIVE_NO_GATE: partial(pact_loss, over="selection", gate=False, cached=False),
    RELEASED: released_side,
}
LIGER, LIGER_BUDGET = "plain, Liger's loss", 4
"""The fastest one on an H200 for a head of 8B parameters' model."""


def liger_loss(setting: Setting, task: Task) -> LossOf:
    """Plain fine-tuning with Liger's fused loss on answer rows."""
    loss = Liger().load({"budget": LIGER_BUDGET, "accumulate": None})
    batch, student = task.batch(gate=False), setting.student

    def forward() -> Tensor:
        states = hidden_states(student, batch["input_ids"], batch["attention_mask"])  # (B, L, D)
        rows = states[batch["row_sequence"], batch["row_position"]]
        return loss(rows, output_head(student).weight, batch["row_target"])

    return forward


def sides_on_card() -> dict[str, Side]:
    """All of a step's sides, the one that needs a second model last."""
    liger = {LIGER: liger_loss} if installed_version(Liger.distribution) else {}
    return {name: SIDES[name] for name in (OWN, FUSED)} | liger | SIDES


def take_step(setting: Setting, loss: LossOf) -> None:
    """Forward, backward, and one update of the adapters."""
    with setting.autocast():
        value = loss()
    value.backward()
    setting.optimizer.step()
    setting.optimizer.zero_grad()


def loss_and_gradients(setting: Setting, loss: LossOf) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients by the adapters; nothing is updated."""
    with setting.autocast():
        value = loss()
    parameters = list(trainable_parameters(setting.student).values())
    return value.detach(), list(torch.autograd.grad(value, parameters))


class Difference(NamedTuple):
    """How far two sides of one meaning are apart, relative to the second."""

    loss: float
    gradient: float


def apart(setting: Setting, loss_of: LossOf, same_loss_of: LossOf) -> Difference:
    """How far two sides are apart; their losses are formed one after the other."""
    found, same = (loss_and_gradients(setting, each) for each in (loss_of, same_loss_of))
    (loss, gradient), (same_loss, same_gradient) = (
        (value, torch.cat([g.flatten() for g in gradients])) for value, gradients in (found, same)
    )
    return Difference(
        loss=float((loss - same_loss).abs() / same_loss.abs()),
        gradient=float((gradient - same_gradient).norm() / same_gradient.norm()),
    )
