"""The methods that are compared, each at its own default, and the sets that they are tried on."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from benchmarks.experiment.cell import Cell
from pact.objective import PactConfig
from pact.training.config import TrainConfig

SETS = {
    "benign only": 0.0,
    "5 % harmful": 0.05,
    "10 % harmful": 0.1,
    "20 % harmful": 0.2,
    "30 % harmful": 0.3,
}
"""Harmful pairs among the fine-tuning examples, by the name of the set."""
MIXED = TrainConfig.refusal_share
"""Refusals among the fine-tuning examples, where they are mixed in."""

ALIGNED = Cell(method="aligned")
PLAIN = Cell(method="plain")
RELEASED = Cell(method="pact", pact=PactConfig(over="selection"))
"""The released objective, as released."""
VOCABULARY = Cell(
    method="pact",
    pact=PactConfig(
        over="vocabulary",
        kl_weight=1.0,
        kl_step_tau=inf,
        kl_margin=0.0,
        positive_only=False,
        gate=True,
    ),
)
"""The same settings over the vocabulary."""
DEFAULT = Cell(method="pact", pact=PactConfig())
"""The package's default."""
MARGIN = replace(DEFAULT, pact=PactConfig(kl_margin=1.5))
"""For data without refusals."""
WITH_REFUSALS = replace(DEFAULT, refusal_share=MIXED)
"""The default, with some of the refusals that discovery reads in the data too."""
ANCHORED = replace(
    DEFAULT,
    pact=PactConfig(kl_weight=30.0),
    anchor_share=TrainConfig.anchor_share,
    anchor_steps=TrainConfig.anchor_steps,
    steps=round(DEFAULT.steps / (1 - TrainConfig.anchor_share)),
)
"""Held to the aligned model's own answers beside the data, of which as many are learnt as without
them."""
ANCHORS_ONLY = replace(ANCHORED, pact=PactConfig(kl_weight=30.0, anchors_only=True))
"""And not to its own tokens at the data's answers, which open otherwise."""
FULL_KL = Cell(method="full_kl", strength=1.0)
FIRST_TOKENS = Cell(method="first_tokens", strength=1.0)

DEFAULT_LABEL = "PACT default"
WITH_REFUSALS_LABEL = "PACT default, 10 % refusals"
ANCHORED_LABEL = "PACT lambda 30, anchors"
ANCHORS_ONLY_LABEL = "PACT lambda 30, anchors only"
PATCH_LABEL = "plain, then one refusal"
SAFE_LORA_LABEL = "SafeLoRA"
METHODS = {
    "plain": PLAIN,
    "PACT selection (released)": RELEASED,
    DEFAULT_LABEL: DEFAULT,
    "PACT default, margin": MARGIN,
    WITH_REFUSALS_LABEL: WITH_REFUSALS,
    "PACT lambda 30, 10 % refusals": replace(WITH_REFUSALS, pact=PactConfig(kl_weight=30.0)),
    ANCHORED_LABEL: ANCHORED,
    ANCHORS_ONLY_LABEL: ANCHORS_ONLY,
    "full-vocabulary KL": FULL_KL,
    "first tokens": FIRST_TOKENS,
    "plain, 5 % refusals": Cell(method="mixing", refusal_share=0.05),
    "plain, 10 % refusals": Cell(method="mixing", refusal_share=MIXED),
    "safety-token logits": Cell(method="token_logits", strength=0.1),
    PATCH_LABEL: Cell(method="patch"),
    "Lisa": Cell(method="lisa"),
    SAFE_LORA_LABEL: Cell(method="safe_lora", strength=0.1),
}
"""By their label in the tables, each at its own default. The cosines that SafeLoRA looks at are
from 0.05 to 0.45 after 48 steps on the demo's model, so its threshold of 0.1 projects a quarter of
the adapters; at 0.5, the source's, all are projected, and nothing is left of the tasks."""
AT_EVERY_SHARE = {"plain", WITH_REFUSALS_LABEL, "plain, 10 % refusals", PATCH_LABEL}
"""Methods that are tried on every set; the others, for time, at 0, 10 and 30 %."""
LEFT_OUT = {
    "5 % harmful": set(METHODS) - AT_EVERY_SHARE,
    "10 % harmful": {"PACT default, margin"},
    "20 % harmful": set(METHODS) - AT_EVERY_SHARE,
    "30 % harmful": {
        DEFAULT_LABEL,
        "PACT default, margin",
        "PACT lambda 30, 10 % refusals",
        "first tokens",
        "plain, 5 % refusals",
    },
}
"""By set, methods that are made for another one; from the last some are left out for time."""
