"""What a run looks at on its way: the loss of other examples, and whether it still refuses.

`fit` calls an `Evaluation` every few steps, in all processes. The weights of the best of them, by
the loss, are kept in the run's folder and are what is saved in the end; a run that gets no better
may stop early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pact.data.batches import length_batches
from pact.data.conversation import Conversation
from pact.objective import Objective
from pact.reference import Reference
from pact.training.manifest import closed_folder, damage
from pact.training.metrics import Record
from pact.training.schedule import example_lengths
from pact.training.student import batch_loss

LOSS = "eval_loss"
"""What the best is chosen by."""
BEST, WEIGHTS = "best", "weights.safetensors"
"""Folder of the best weights, in a run's, and their file."""

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


class Evaluation:
    """The objective's loss on other examples, and the refusals of some prompts.

    Args:
        dataset: examples with `input_ids` and `labels`.
        objective: the run's.
        reference: a live one, since a cache is of the training examples; None without a pull.
        collator: makes batches, as in training.
        max_tokens: most positions of a batch, padding included.
        prompts: harmful requests that are asked each time; the share that is refused is reported.
        tokenizer: to ask with.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]] | Any,
        objective: Objective,
        reference: Reference | None,
        collator: Collate,
        *,
        max_tokens: int = 8192,
        prompts: Sequence[Conversation] = (),
        tokenizer: Any = None,
        max_new_tokens: int = 32,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("an evaluation needs at least one example, got none")
        self.dataset, self.objective, self.reference = dataset, objective, reference
        self.lengths = example_lengths(dataset)
        self.collator, self.max_tokens = collator, max_tokens
        self.prompts, self.tokenizer, self.max_new_tokens = prompts, tokenizer, max_new_tokens

    @torch.no_grad()
    def __call__(self, model: nn.Module, accelerator: Accelerator, dtype: str) -> Record:
        """Means over all rows of all processes; the model's mode is put back after."""
        from pact.evaluation.inference import looking_at

        device = accelerator.device
        sums = torch.zeros(4, device=device, dtype=torch.float64)  # loss, CE, KL, rows
        own = range(accelerator.process_index, len(self.dataset), accelerator.num_processes)
        lengths = self.lengths[own].tolist()
        autocast = torch.autocast(device.type, torch.bfloat16, dtype == "bf16")
        with looking_at(model), autocast:
            for lines in length_batches(lengths, max_tokens=self.max_tokens):
                batch = self.collator([self.dataset[own[line]] for line in lines])
                batch = {name: value.to(device) for name, value in batch.items()}
                loss = batch_loss(model, self.objective, self.reference, batch)
                parts = torch.stack([loss.loss, loss.cross_entropy, loss.kl]).double()
                rows = loss.num_rows.double()
                sums += torch.cat([parts * rows, rows[None]])
        *totals, rows = accelerator.reduce(sums, reduction="sum").tolist()
        if rows == 0:
            raise ValueError("an evaluation needs answer tokens to predict, got none")
        names = (LOSS, "eval_cross_entropy", "eval_kl")
        record = dict(zip(names, (total / rows for total in totals), strict=True))
        if not math.isfinite(record[LOSS]):
            found = ", ".join(f"{name} {value:.4g}" for name, value in record.items())
            raise ValueError(
                f"the loss of an evaluation must be finite, got {found}: look at its examples, and "
                "at the model in fp32"
            )
        if self.prompts:
            record["eval_refusals"] = self._refusals(model, accelerator)
        return record

    def _refusals(self, model: nn.Module, accelerator: Accelerator) -> float:
        """Share of the prompts whose answer refuses, by its words."""
        from pact.evaluation.generate import generate_answers
        from pact.evaluation.judges.registry import make_judge
        from pact.evaluation.judges.verdict import JudgeOptions

        own = self.prompts[accelerator.process_index :: accelerator.num_processes]
        refused = 0
        if own:
            answers = generate_answers(
                model,
                self.tokenizer,
                own,
                max_new_tokens=self.max_new_tokens,
                batch_size=16,
                progress=False,
            )
            judge = make_judge("keyword", JudgeOptions(progress=False))
            refused = sum(verdict.starts_with_refusal for verdict in judge(own, answers))
        counted = torch.tensor(refused, device=accelerator.device)
        total = accelerator.reduce(counted, reduction="sum")
        return float(total) / len(self.prompts)


class _Best(NamedTuple):
    step: int
    loss: float


class BestWeights:
    """The trained weights at the step whose evaluation was the best, on disk or in memory.

    Args:
        folder: the run's; None keeps them in memory.
        records: of the run so far, if it is resumed.
        patience: evaluations without a better one after which a run stops; None: never.
    """

    def __init__(
        self, folder: Path | None, records: Sequence[Record], patience: int | None
    ) -> None:
        self.folder = None if folder is None else folder / BEST
        self.patience = patience
        self.losses = [
            _Best(int(record["step"]), record[LOSS]) for record in records if LOSS in record
        ]
        self._kept: dict[str, Tensor] = {}

    @property
    def best(self) -> _Best:
        """The first of the lowest."""
        return min(self.losses, key=lambda each: each.loss, default=_Best(0, math.inf))

    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        if self.patience is None or not self.losses:
            return False
        at = self.losses.index(self.best)
        return len(self.losses) - 1 - at >= self.patience

    def see(
        self, step: int, loss: float, parameters: Mapping[str, nn.Parameter], *, writes: bool
    ) -> bool:
        """Note an evaluation, and keep the weights if it is the best."""
        is_best = loss < self.best.loss
        self.losses.append(_Best(step, loss))
        if is_best and (writes or self.folder is None):
            weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
            if self.folder is None:
                self._kept = weights
            else:
                with closed_folder(self.folder, step) as partial:
                    whole = {name: weight.contiguous() for name, weight in weights.items()}
                    save_file(whole, partial / WEIGHTS)
        return is_best

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Put the best weights into the parameters; returns their step.

        Raises:
            ValueError: those on disk are gone, damaged or of another step.
        """
        weights = self._kept
        if self.folder is not None:
            found = damage(self.folder, self.best.step)
            if found is not None:
                raise ValueError(
                    f"the best weights, of step {self.best.step}, must be whole in {self.folder}, "
                    f"and are not ({found}): put them back, or resume with keep_best=False "
                    "(--no-keep-best) to save the last ones"
                )
            weights = load_file(self.folder / WEIGHTS)
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        return self.best.step
