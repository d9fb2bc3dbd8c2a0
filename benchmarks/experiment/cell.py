"""A cell of the experiment: one fine-tuning of the aligned model, all that it depends on."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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
NO_STRENGTH = ("plain", "mixing", "patch")
"""Methods that do not read `strength`."""
ANCHOR_TOKENS = 32
"""Tokens that the aligned model answers an anchor's prompt with: no cell can hold more."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is trained, on what, and what of it is measured. Equal cells are computed once."""

    method: Method
    """aligned: no training at all; plain: cross-entropy; pact: with the settings `pact`; full_kl:
    KL to the reference over the whole vocabulary; first_tokens: constrained fine-tuning of the
    first answer tokens (Qi et al. 2025); mixing: plain with refusals in the data
    (`refusal_share`), which pact may have too; token_logits: the reference's logits of the tokens
    of refusal templates held; patch: plain, then a few steps on one refusal; lisa: steps on the
    data and on refusals by turns; safe_lora: plain, then the adapters are projected."""
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
        if self.anchor_share and self.method != "pact":
            raise ValueError(
                f"anchors are held by PACT's KL, got anchor_share={self.anchor_share} with method="
                f"{self.method}: leave it at 0"
            )
        if not (0 <= self.anchor_share < 1 and 1 <= self.anchor_steps <= ANCHOR_TOKENS):
            raise ValueError(
                "anchor_share must be in [0, 1) and anchor_steps from 1 to "
                f"{ANCHOR_TOKENS}, got {self.anchor_share} and {self.anchor_steps}"
            )
        if self.method == "safe_lora" and self.full_finetuning:
            raise ValueError(
                "safe_lora projects adapters, got full_finetuning: leave one of them out"
            )

    @property
    def name(self) -> str:
        """Name of the cell's result file: readable parts, then a digest of everything."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()
        share = f"h{100 * self.harmful_share:02.0f}"
        return "-".join([self.method, share, f"s{self.seed}", digest[:10]])

    def settings(self) -> dict[str, Any]:
        """All fields as plain values, those left out that this method does not read."""
        values = asdict(self)
        unread = {
            "aligned": set(values) - {"method"},
            "pact": {"strength"},
        }.get(
            self.method,
            {"pact", "top_k", "token_source", "num_samples", "max_response_length", "weighted"},
        )
        if self.method in NO_STRENGTH:
            unread = unread | {"strength"}
        if self.method != "patch":
            unread = unread | {"patch_steps"}
        if not self.refusal_share:
            unread = unread | {"refusal_share"}
        if not self.anchor_share:
            unread = unread | {"anchor_share", "anchor_steps"}
        values = {name: value for name, value in values.items() if name not in unread}
        pact = values.get("pact")
        if pact is not None:  # JSON has no infinity
            if not pact["anchors_only"]:  # as all cells were before it was a setting
                del pact["anchors_only"]
            values["pact"] = {n: "inf" if v == math.inf else v for n, v in pact.items()}
        return json.loads(json.dumps(values))
