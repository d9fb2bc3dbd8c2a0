"""Axolotl's plugin: `plugins: [pact.integrations.axolotl.PactPlugin]` in its YAML.

    plugins: [pact.integrations.axolotl.PactPlugin]
    pact_tokens: safety-tokens.safetensors
    pact_config: {kl_weight: 10.0}          # any key of PactConfig; unset is its default

Axolotl loads the model, puts adapters on, makes the batches and packs them, as it does without the
plugin; the model is patched when it is loaded (`pact.patch`), and the trainer logs the parts of the
loss. So `get_collator_cls_and_kwargs` stays Axolotl's, and there are no training arguments.

Written for the plugin interface of axolotl 0.19.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, field_validator

from pact.common.settings import user_path
from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.integrations.transformers_models import patch
from pact.objective import PactConfig

OTHER_LOSSES = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "flash_attn_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "unsloth_cross_entropy_loss",
    "use_eaft",
    "label_smoothing_factor",
    "kd_trainer",
)
"""Keys that put another loss in the model's place."""
SHARDING = ("fsdp", "fsdp_config", "tensor_parallel_size", "context_parallel_size")
"""Keys that cut the head's weight, or the sequence, into parts."""


class PactArgs(BaseModel):
    """What the plugin adds to Axolotl's YAML."""

    pact_tokens: str
    """File of safety tokens, from `pact discover`."""
    pact_config: dict[str, Any] | None = None
    """Settings of `PactConfig`."""

    @field_validator("pact_tokens")
    @classmethod
    def _is_there(cls, path: str) -> str:
        if not user_path(path).is_file():
            raise ValueError(f"pact_tokens {path} does not exist: run `pact discover` first")
        return path

    @field_validator("pact_config")
    @classmethod
    def _is_known(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        _config(settings)
        return settings


class PactPlugin(BasePlugin):  # type: ignore[misc]
    """The pull on the safety tokens, in the models that Axolotl trains."""

    def get_input_args(self) -> str:
        """Where the plugin's keys are declared."""
        return "pact.integrations.axolotl.PactArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Refuse what cannot be honoured, before a model is loaded.

        Raises:
            ValueError: another loss, or a head in parts.
        """
        for name in OTHER_LOSSES:
            if cfg.get(name):
                raise ValueError(f"the loss is pact's, got {name}: leave it out of the YAML")
        for name in SHARDING:
            value = cfg.get(name)
            if value and value != 1:
                raise ValueError(f"the head must be whole in every process, got {name}: use DDP")
        if _zero_stage(cfg.get("deepspeed")) == 3:
            raise ValueError("the head must be whole in every process, got ZeRO-3: use ZeRO-1 or 2")

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Patch the model, adapters on it already."""
        tokens = SafetyTokens.load(cfg.get("pact_tokens"))
        patch(model, tokens=tokens, pact=_config(cfg.get("pact_config")))

    def get_trainer_cls(self, cfg: Any) -> type:
        """Axolotl's trainer, with the parts of the loss in its logs."""
        return _trainer_class()


def _zero_stage(deepspeed: Any) -> int:
    """The stage of DeepSpeed's settings: a mapping, or the path of a file."""
    if not deepspeed:
        return 0
    if isinstance(deepspeed, str):
        path = user_path(deepspeed)
        if not path.is_file():  # one of Axolotl's own by name
            return 3 if "zero3" in path.name else 0
        deepspeed = json.loads(path.read_text(encoding="utf-8"))
    return int((deepspeed.get("zero_optimization") or {}).get("stage", 0))


@cache
def _trainer_class() -> type:
    from axolotl.core.trainers.base import AxolotlTrainer

    return type("PactAxolotlTrainer", (PatchedTrainer, AxolotlTrainer), {"__module__": __name__})


def _config(settings: dict[str, Any] | None) -> PactConfig:
    known = PactConfig.__dataclass_fields__
    unknown = sorted(set(settings or {}) - set(known))
    if unknown:
        raise ValueError(f"pact_config knows {', '.join(known)}, got {', '.join(unknown)}")
    return PactConfig(**(settings or {}))
