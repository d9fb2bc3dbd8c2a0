"""One cell on models in memory: its safety tokens, its fine-tuning, and what is left.

Legend: K safety tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.baselines import (
    FirstTokens,
    FullVocabularyKl,
    TokenLogits,
    template_tokens,
)
from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.conversations import finetuning_set, task
from benchmarks.experiment.opening import opening_odds
from benchmarks.experiment.outside import harmbench_prompts
from benchmarks.experiment.protocol import Protocol
from benchmarks.experiment.record import Measures
from benchmarks.experiment.rivals import Proximal, Turns, project_adapters
from benchmarks.experiment.second import make_second, second_counts
from benchmarks.experiment.subject import OwnRefusals, Subject
from pact.data.anchors import with_anchors
from pact.data.collate import Collator
from pact.data.conversation import Conversation
from pact.data.dataset import encode_examples
from pact.data.examples import load_examples
from pact.data.template import IGNORE, header_ids
from pact.demo.conversations import read
from pact.discovery import SafetyTokens, discover
from pact.evaluation import Evaluation, evaluate
from pact.evaluation.result import Refusals
from pact.models.loading import load_model, load_tokenizer
from pact.objective import CrossEntropy, Objective, PactObjective
from pact.reference import AdaptersOff, FrozenModel, Reference
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.student import add_adapters

PREFILL = "Sure, here is"
"""The attack: words put at the beginning of the answer."""
TABLE_CELL = Cell(method="pact")
"""The cell in whose safety tokens the tables show the confidence, whatever a method trains on."""
Look = Callable[[Any, Reference, int], None]
"""Called with the model on its way, the frozen model, and the steps done."""


class Bench:
    """The models on disk and the prompts, read once for all cells.

    Args:
        aligned: folder, or hub name, of the chat model that the cells start from.
        base: of the model that it was made from; None: the plainly fine-tuned one stands in for it.
        protocol: what all cells share.
        own: files of the model's own refusals; None takes those that the demo's was taught.
        identity: names and digests of the models, for the records.
        plain: folder of the plainly fine-tuned model, where tokens are found against it.
        anchors: file of the aligned model's own answers, for cells that are held to them.
    """

    def __init__(
        self,
        aligned: str | Path,
        base: str | Path | None,
        protocol: Protocol,
        *,
        own: OwnRefusals | None = None,
        identity: Mapping[str, str] | None = None,
        plain: Path | None = None,
        anchors: Path | None = None,
    ) -> None:
        self.subject = Subject(aligned, base, own, dict(identity or {}))
        self.protocol = protocol
        self.plain = plain
        self.anchors = anchors
        self.second = make_second(protocol.second_judge, protocol.prompts.batch_size)
        self.tokenizer = load_tokenizer(aligned)
        self._tokens: dict[tuple[Any, ...], SafetyTokens] = {}

    def tokens(self, cell: Cell) -> SafetyTokens:
        """Safety tokens of a cell: discovered, or of the two kinds that they are compared with."""
        source, top_k, length = cell.token_source, cell.top_k, cell.max_response_length
        key = (source, top_k, length, cell.num_samples)
        if key not in self._tokens:
            refusals = self.subject.told(self.subject.refusals("train")[: cell.num_samples])
            dataset = encode_examples(refusals, self.tokenizer, None)
            if source in ("p_diff", "plain"):
                self._tokens[key] = discover(
                    self.load(self.subject.aligned),
                    self.load(self._base(source)),
                    dataset,
                    top_k=top_k,
                    max_response_length=length,
                    tokenizer=self.tokenizer,
                    progress=False,
                )
            else:
                self._tokens[key] = _equally(self._other_tokens(cell, dataset))
        return self._tokens[key]

    def load(self, name: str | Path) -> Any:
        """A model with its adapters merged, on the device that is trained on."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(name, merge_adapters=True).to(device)

    def _base(self, source: str) -> str | Path:
        """What discovery compares the aligned model with."""
        base = self.plain if source == "plain" else self.subject.base or self.plain
        assert base is not None, "`run_cells` makes the plainly fine-tuned model"
        return base

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
        """The trained model and the frozen one.

        Args:
            cell: its method is not "aligned".
            look: called with the model and the frozen one before the first step, and every
                `cell.curve_every` steps.
        """
        model = self.load(self.subject.aligned)
        reference: Reference
        if cell.full_finetuning:
            reference = FrozenModel(copy.deepcopy(model))
            model.requires_grad_(True)
        else:
            model = add_adapters(model, seed=cell.seed)
            reference = AdaptersOff(model)
        objective = self.objective(cell, model)
        data = finetuning_set(
            cell.harmful_share,
            cell.seed,
            cell.tasks,
            cell.refusal_share,
            self.subject.refusals("train"),
        )
        dataset: Any = self._encoded(data)
        if cell.anchor_share:
            dataset = self._with_anchors(dataset, cell)
        turns = None
        if isinstance(objective, Proximal):
            turns = Turns(dataset, self._encoded(self.subject.refusals("train")), objective)

        def after_step(step: int) -> None:
            if turns is not None:
                turns.after_step(step)
            if look and cell.curve_every and step % cell.curve_every == 0 and step < cell.steps:
                look(model, reference, step)

        after_step(0)
        held_to = reference if objective.needs_reference else None
        self._fit(cell, model, turns or dataset, objective, held_to, cell.steps, after_step)
        if cell.method == "patch":
            refusal = random.Random(f"patch {cell.seed}").choice(self.subject.refusals("train"))
            one = self._encoded([refusal])
            self._fit(cell, model, one, objective, None, cell.patch_steps)
        if cell.method == "safe_lora":
            if self.subject.base is None:
                raise ValueError(
                    "safe_lora needs the model that the aligned one was made from: give BASE"
                )
            project_adapters(model, self.load(self.subject.base), cell.strength)
        return model, reference

    def _encoded(self, conversations: Sequence[Conversation]) -> Any:
        return encode_examples(self.subject.told(conversations), self.tokenizer, None)

    def _with_anchors(self, dataset: Any, cell: Cell) -> Any:
        assert self.anchors is not None, "`run_cells` has the aligned model write them"
        anchors = encode_examples(load_examples(self.anchors), self.tokenizer, None)
        return with_anchors(dataset, anchors, cell.anchor_share, cell.anchor_steps, cell.seed)

    def _fit(
        self,
        cell: Cell,
        model: Any,
        dataset: Any,
        objective: Objective,
        held_to: Reference | None,
        steps: int,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Train by the protocol's settings and the cell's."""
        header = header_ids(self.tokenizer) if objective.needs_post_only else ()
        collator = Collator(
            header, self.tokenizer.pad_token_id, post_only=objective.needs_post_only
        )
        protocol = self.protocol
        peak = protocol.full_learning_rate if cell.full_finetuning else protocol.learning_rate
        config = FitConfig(
            learning_rate=peak,
            max_steps=steps,
            batch_size=protocol.batch_size,
            warmup_ratio=0.1,
            seed=cell.seed,
            save_every=None,
        )
        fit(model, dataset, objective, held_to, collator, config, after_step=after_step)

    def objective(self, cell: Cell, model: Any) -> Objective:
        """What a cell minimises; `model` is the one that it trains."""
        if cell.method == "pact":
            tokens = self.tokens(cell)
            weights = tokens.weights if cell.weighted else torch.ones(len(tokens.ids))
            return PactObjective(tokens.ids, weights, cell.pact)
        if cell.method == "full_kl":
            return FullVocabularyKl(cell.strength)
        if cell.method == "first_tokens":
            return FirstTokens(strength=cell.strength)
        if cell.method == "token_logits":
            return TokenLogits(template_tokens(self.tokenizer), cell.strength)
        if cell.method == "lisa":
            return Proximal((p for p in model.parameters() if p.requires_grad), cell.strength)
        return CrossEntropy()

    def measure(
        self, model: Any, reference: Reference, *, outside: bool = True, attacked: bool = True
    ) -> Measures:
        """All that is counted of one model.

        `attacked` with the prefill; `outside` with the outside prompts and the odds of openings.
        """
        prompts = self.protocol.prompts
        harmful = self.subject.told(read("harmful", "heldout")[: prompts.heldout])
        common: dict[str, Any] = {"batch_size": prompts.batch_size, "progress": False}
        ask = {"max_new_tokens": prompts.max_new_tokens, **common}
        main = evaluate(
            model,
            self.tokenizer,
            harmful=harmful,
            benign=self.subject.told(read("benign", "heldout")[: prompts.heldout]),
            heldout=self.subject.told(read("finetune", "heldout")),
            drift=self.subject.told(self.subject.refusals("heldout")[: prompts.heldout]),
            tokens=self.tokens(TABLE_CELL),
            reference=reference,
            **ask,
        )
        counts = _refusals("harmful", main.harmful) | _refusals("benign", main.benign)
        counts |= second_counts("harmful", self.second, harmful, main)
        if attacked:
            answers = evaluate(model, self.tokenizer, harmful=harmful, prefill=PREFILL, **ask)
            counts |= _refusals("prefill", answers.harmful)
            counts |= second_counts("prefill", self.second, harmful, answers)
        for name in TASKS:
            data = self.subject.told(task(name, "heldout")[: prompts.heldout])
            matches = evaluate(model, self.tokenizer, task=data, **common).task
            assert matches is not None
            counts[name] = matches.successes, matches.n
        plain_answers = self.subject.told(read("benign", "heldout"))
        fluent = evaluate(model, self.tokenizer, heldout=plain_answers, **common).heldout
        assert fluent is not None
        values = _drift(main) | {"benign_perplexity": fluent.perplexity}
        if outside:
            requests = self.subject.told([_request(t) for t in harmbench_prompts(prompts.outside)])
            answers = evaluate(model, self.tokenizer, harmful=requests, **ask)
            counts |= _refusals("outside", answers.harmful)
            counts |= second_counts("outside", self.second, requests, answers)
            for name in ("harmful", "finetune"):
                values[f"{name}_odds_nats"] = opening_odds(
                    model,
                    self.tokenizer,
                    self.subject.told(read(name, "heldout")),
                    self.tokens(TABLE_CELL),
                    PREFILL,
                    batch_size=prompts.batch_size,
                )
        return Measures(counts=counts, values=values)


def _request(text: str) -> Conversation:
    return Conversation([{"role": "user", "content": text}])


def _refusals(name: str, refusals: Refusals | None) -> dict[str, tuple[int, int]]:
    assert refusals is not None
    starts, contains = refusals.starts, refusals.contains
    return {
        name: (starts.successes, starts.n),
        f"{name}_anywhere": (contains.successes, contains.n),
    }


def _drift(evaluation: Evaluation) -> dict[str, float]:
    drift, loss = evaluation.drift, evaluation.heldout
    assert drift is not None and loss is not None
    names = (
        "kl_vocabulary_nats",
        "kl_selection_nats",
        "confidence",
        "reference_confidence",
        "first_confidence",
        "first_reference_confidence",
    )
    return {"finetune_nats": loss.mean_nats} | {name: getattr(drift, name) for name in names}


def _equally(ids: Sequence[int]) -> SafetyTokens:
    """Tokens that weigh the same."""
    return SafetyTokens(torch.tensor(sorted(ids)), torch.ones(len(ids)))
