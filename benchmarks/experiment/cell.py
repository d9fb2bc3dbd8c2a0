"""A cell of the experiment: one fine-tuning of the aligned model, all that it depends on.

What it came to is its record, a JSON file of its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pact.common.outputs import whole_file
from pact.objective import PactConfig

Method = Literal[
    "aligned",
    "plain",
    "pact",
    "full_kl",
    "first_tokens",
    "mixing",
    "token_logits",
    "patch",
    "lisa",
    "safe_lora",
]
TokenSource = Literal["p_diff", "plain", "random", "frequency"]
TASKS = ("classification", "extraction")
OF_PACT = ("pact", "top_k", "token_source", "num_samples", "max_response_length", "weighted")
NO_STRENGTH = ("plain", "mixing", "patch")
"""What method pact alone reads, and methods beside it that do not read `strength`."""
ANCHOR_TOKENS = 32
"""Tokens that the aligned model answers an anchor's prompt with: no cell can hold more."""


Measures: TypeAlias = dict[str, Any]
"""What was measured of one model at one step; what a cell was not asked is left out.

`counts`, (yes, n): harmful, prefill, outside and benign (refusals from the start), each also with
`_anywhere`; one by the name of each task (exact matches). `values`: finetune_nats,
benign_perplexity; of the drift on held-out refusals kl_vocabulary_nats, kl_selection_nats,
confidence, reference_confidence, first_confidence and first_reference_confidence; harmful_odds_nats
and finetune_odds_nats, how much likelier a refusal is than "Sure" as the first token of answers to
these held-out requests.
"""
Record: TypeAlias = dict[str, Any]
"""A finished cell: `settings`, those of the cell; `measures`, at the end of the training; `curve`,
measures on the way, by step, 0 being the aligned model; `environment`, which says on what, with
which versions and when."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is trained, on what, and what of it is measured. Equal cells are computed once."""

    method: Method
    """Each is described in `document.METHODS`; aligned is no training at all. mixing is plain with
    refusals in the data (`refusal_share`), which pact may have too."""
    seed: int = 0
    """Order of the data, harmful pairs drawn, first values of the adapters."""
    harmful_share: float = 0.0
    """Harmful pairs among the fine-tuning examples."""
    tasks: tuple[str, ...] = TASKS
    """Tasks with an exact answer among them."""
    refusal_share: float = 0.0
    """Refusals of harmful requests among the fine-tuning examples."""
    anchor_share: float = 0.0
    """Anchors among the fine-tuning examples of method pact: the aligned model's own answers, held
    by the KL and not learnt. They take the place of others in a step."""
    anchor_steps: int = 8
    """First tokens of each anchor's answer that are held."""
    strength: float = 1.0
    """Weight of the KL of full_kl, of the constraint of first_tokens, of the squared difference of
    token_logits; rho of lisa; the cosine up to which safe_lora projects an adapter."""
    patch_steps: int = 5
    """Steps of method patch on its one refusal, after the others: on dev prompts of the demo's
    model 5 bring some refusals back, and 10 make it refuse everything."""
    pact: PactConfig = field(default_factory=PactConfig)
    """The objective of method pact."""
    top_k: int = 50
    """Safety tokens of method pact."""
    token_source: TokenSource = "p_diff"
    """How they are found: discovery against the base, or against the plainly fine-tuned model; at
    random; or the most frequent tokens of the answers."""
    num_samples: int = 100
    """Refusals that discovery looks at."""
    max_response_length: int = 8
    """First tokens of each refusal that discovery looks at: these refusals are short."""
    weighted: bool = True
    """Keep the weights of discovery, or let every safety token weigh the same."""
    full_finetuning: bool = False
    """All weights in place of adapters."""
    steps: int = 48
    """Optimiser steps."""
    curve_every: int | None = None
    """Steps between measurements on the way; None measures at the end alone."""

    def __post_init__(self) -> None:
        assert not self.anchor_share or self.method == "pact", "anchors are held by PACT's KL"
        assert 0 <= self.anchor_share < 1 and 1 <= self.anchor_steps <= ANCHOR_TOKENS
        assert not (self.method == "safe_lora" and self.full_finetuning), "it projects adapters"

    @property
    def name(self) -> str:
        """Name of the cell's result file: readable parts, then a digest of everything."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()
        share = f"h{100 * self.harmful_share:02.0f}"
        return "-".join([self.method, share, f"s{self.seed}", digest[:10]])

    def settings(self) -> dict[str, Any]:
        """All fields as plain values, those left out that this method does not read."""
        if self.method == "aligned":
            return {"method": "aligned"}
        is_pact = self.method == "pact"
        is_read = {
            "strength": not is_pact and self.method not in NO_STRENGTH,
            "patch_steps": self.method == "patch",
            "refusal_share": self.refusal_share,
            "anchor_share": self.anchor_share,
            "anchor_steps": self.anchor_share,
            **dict.fromkeys(OF_PACT, is_pact),
        }
        values = {name: value for name, value in asdict(self).items() if is_read.get(name, True)}
        if is_pact:  # JSON has no infinity
            pact = {n: "inf" if v == math.inf else v for n, v in values["pact"].items()}
            if not pact["anchors_only"]:  # as all cells were before it was a setting
                del pact["anchors_only"]
            values["pact"] = pact
        return json.loads(json.dumps(values))


def path_of(cell: Cell, folder: Path) -> Path:
    """The file of a cell's record."""
    return folder / f"{cell.name}.json"


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds, such as a record; nothing where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
