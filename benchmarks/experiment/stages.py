"""One cell on models in memory: its safety tokens and its fine-tuning.

Legend: K safety tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.baselines import (
    Held,
    first_tokens,
    full_vocabulary_kl,
    template_tokens,
    token_logits,
)
from benchmarks.experiment.cell import Cell
from benchmarks.experiment.conversations import finetuning_set
from benchmarks.experiment.protocol import Protocol
from benchmarks.experiment.rivals import Proximal, Turns, project_adapters
from benchmarks.experiment.subject import Subject
from benchmarks.experiment.training import train
from pact.data.anchors import with_anchors
from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.template import IGNORE
from pact.discovery import SafetyTokens, discover
from pact.models.loading import load_model, load_tokenizer
from pact.objective import CrossEntropy, Objective, PactObjective
from pact.reference import AdaptersOff, FrozenModel, Reference
from pact.training.student import add_adapters

Look = Callable[[Any, Reference, int], None]
"""Called with the model on its way, the frozen model, and the steps done."""


class Bench:
    """The models on disk and the prompts, read once for all cells.

    Args:
        subject: the model that the cells start from.
        protocol: what all cells share.
    """

    def __init__(self, subject: Subject, protocol: Protocol) -> None:
        self.subject = subject
        self.protocol = protocol
        self.tokenizer = load_tokenizer(subject.aligned)
        self._tokens: dict[tuple[Any, ...], SafetyTokens] = {}

    def tokens(self, cell: Cell) -> SafetyTokens:
        """Safety tokens of a cell: discovered, or of the two kinds that they are compared with."""
        source, top_k, length = cell.token_source, cell.top_k, cell.max_response_length
        key = (source, top_k, length, cell.num_samples)
        if key not in self._tokens:
            dataset = self._encoded(self.subject.refusals("train")[: cell.num_samples])
            plain: Any = self.subject.plain  # `run_cells` makes it where it is needed
            bases = {"p_diff": self.subject.base or plain, "plain": plain}
            if source in bases:
                self._tokens[key] = discover(
                    self.load(self.subject.aligned),
                    self.load(bases[source]),
                    dataset,
                    top_k=top_k,
                    max_response_length=length,
                    tokenizer=self.tokenizer,
                    progress=False,
                )
            else:
                ids = torch.tensor(sorted(self._other_tokens(cell, dataset)))
                self._tokens[key] = SafetyTokens(ids, torch.ones(len(ids)))
        return self._tokens[key]

    def load(self, name: str | Path) -> Any:
        """A model with its adapters merged, on the device that is trained on."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(name, merge_adapters=True).to(device)

    def _other_tokens(self, cell: Cell, dataset: Any) -> list[int]:
        """At random among all that are not special, or the commonest where discovery looks."""
        if cell.token_source == "random":
            special = set(self.tokenizer.all_special_ids)
            ids = [token for token in range(len(self.tokenizer)) if token not in special]
            return random.Random(0).sample(ids, cell.top_k)
        counts: Counter[int] = Counter()
        for labels in dataset["labels"]:
            answer = [label for label in labels if label != IGNORE]
            counts.update(answer[: cell.max_response_length])
        return [token for token, _ in counts.most_common(cell.top_k)]

    def finetune(self, cell: Cell, look: Look | None = None) -> tuple[Any, Reference]:
        """The trained model and the frozen one; of the aligned model's cell it is one model.

        Args:
            cell: how it is trained, and on what.
            look: called with the model and the frozen one before the first step, and every
                `cell.curve_every` steps.
        """
        model = self.load(self.subject.aligned)
        if cell.method == "aligned":
            return model, FrozenModel(model)
        reference: Reference
        if cell.full_finetuning:
            reference = FrozenModel(copy.deepcopy(model))
            model.requires_grad_(True)
        else:
            model = add_adapters(model, seed=cell.seed)
            reference = AdaptersOff(model)
        objective = self.objective(cell, model)
        refusals = self.subject.refusals("train")
        dataset: Any = self._encoded(
            finetuning_set(cell.harmful_share, cell.seed, cell.tasks, cell.refusal_share, refusals)
        )
        if cell.anchor_share:
            assert self.subject.anchors is not None, "`run_cells` has the aligned model write them"
            anchors = encode_examples(load_examples(self.subject.anchors), self.tokenizer, None)
            dataset = with_anchors(
                dataset, anchors, cell.anchor_share, cell.anchor_steps, cell.seed
            )
        if isinstance(objective, Proximal):
            dataset = Turns(dataset, self._encoded(refusals), objective)

        def after_step(step: int) -> None:
            if isinstance(dataset, Turns):
                dataset.after_step(step)
            if look and cell.curve_every and step % cell.curve_every == 0 and step < cell.steps:
                look(model, reference, step)

        after_step(0)
        peaks = self.protocol.learning_rate, self.protocol.full_learning_rate
        run = partial(
            train,
            model,
            self.tokenizer,
            learning_rate=peaks[cell.full_finetuning],
            batch_size=self.protocol.batch_size,
            seed=cell.seed,
        )
        run(dataset, objective, reference, after_step, max_steps=cell.steps)
        if cell.method == "patch":
            refusal = random.Random(f"patch {cell.seed}").choice(refusals)
            run(self._encoded([refusal]), objective, max_steps=cell.patch_steps)
        if cell.method == "safe_lora":
            assert self.subject.base is not None, "`without_base` has no such cell"
            project_adapters(model, self.load(self.subject.base), cell.strength)
        return model, reference

    def _encoded(self, conversations: Sequence[Conversation]) -> Any:
        return encode_examples(self.subject.told(conversations), self.tokenizer, None)

    def objective(self, cell: Cell, model: Any) -> Objective:
        """What a cell minimises; `model` is the one that it trains."""
        if cell.method == "pact":
            tokens = self.tokens(cell)
            weights = tokens.weights if cell.weighted else torch.ones(len(tokens.ids))
            return PactObjective(tokens.ids, weights, cell.pact)
        if cell.method == "full_kl":
            return Held(full_vocabulary_kl, cell.strength)
        if cell.method == "first_tokens":
            return Held(partial(first_tokens, strength=cell.strength))
        if cell.method == "token_logits":
            ids = template_tokens(self.tokenizer)
            return Held(partial(token_logits, token_ids=ids), cell.strength)
        if cell.method == "lisa":
            return Proximal((p for p in model.parameters() if p.requires_grad), cell.strength)
        return CrossEntropy()
