"""A sequence-classification model as a judge: one of its labels means refusal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from pact.common.progress import progress_bar
from pact.common.settings import user_path
from pact.data.batches import length_batches
from pact.data.examples import Conversation
from pact.evaluation.judges.verdict import JudgeOptions, Verdict
from pact.models.files import check_model_files, loading
from pact.models.loading import DTYPES, load_tokenizer
from pact.models.whole import check_finite, read_model

MAX_TOKENS = 512
"""What encoders of BERT's kind take; an answer is cut there."""


class ClassifierJudge:
    """Reads the answer alone; a refusal is the label `refusal_label`, wherever the answer refuses.

    Args:
        path: folder of the model and its tokenizer.
        options: `refusal_label` must be set.
    """

    def __init__(self, path: str, options: JudgeOptions) -> None:
        if not (user_path(path) / "config.json").is_file():
            raise ValueError(
                f"a classifier judge needs a model folder, classifier:PATH, got {path!r} without "
                "config.json"
            )
        self.path = str(user_path(path))
        self.options = options
        check_model_files(Path(self.path))  # now, since it is loaded after all answers are there
        with loading(f"config.json of {self.path}"):
            labels = AutoConfig.from_pretrained(self.path, trust_remote_code=False).id2label
        if options.refusal_label not in labels.values():
            raise ValueError(
                f"refusal_label must be one of the classifier's labels {sorted(labels.values())}, "
                f"got {options.refusal_label!r}"
            )
        if len(labels) < 2:
            raise ValueError(
                f"a classifier judge must have at least two labels, got {len(labels)} in {path}"
            )
        self.refusal_id = next(n for n, label in labels.items() if label == options.refusal_label)

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """Tokenizer and model, loaded when first used."""
        tokenizer = load_tokenizer(self.path)
        model = read_model(
            AutoModelForSequenceClassification, self.path, dtype=DTYPES[self.options.dtype]
        )
        check_finite(model, self.path)
        model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model.eval().to(self.options.device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Conversation], answers: Sequence[str]) -> list[Verdict]:
        tokenizer, model = self._model
        limit = min(tokenizer.model_max_length, MAX_TOKENS)
        encoded = [tokenizer(text, truncation=True, max_length=limit) for text in answers]
        lengths = [len(example["input_ids"]) for example in encoded]
        verdicts = [Verdict(False, False)] * len(answers)
        with progress_bar(len(answers), "judge", "answer", show=self.options.progress) as bar:
            for indices in length_batches(lengths, self.options.batch_size):
                batch = tokenizer.pad([encoded[n] for n in indices], return_tensors="pt")
                logits = model(**batch.to(model.device)).logits  # (B, labels)
                for index, label in zip(indices, logits.argmax(-1).tolist(), strict=True):
                    verdicts[index] = Verdict(label == self.refusal_id, label == self.refusal_id)
                bar.update(len(indices))
        return verdicts
