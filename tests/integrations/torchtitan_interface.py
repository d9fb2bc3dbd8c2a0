"""A stand-in of what `pact.integrations.torchtitan` takes from torchtitan, as 0.3.0 has it.

Written from its behaviour: configurations that build their owner, `BaseLoss` with its `fn`, and the
wrapper that the trainer gives the head.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn


@dataclass
class CompileConfig:
    """The trainer's `compile` section."""

    enable: bool = False
    components: tuple[str, ...] = ("model", "loss")
    backend: str = "inductor"


class BaseLoss:
    """A class with a nested `Config`, whose `build` makes it."""

    fn: Any

    @dataclass(kw_only=True, slots=True)
    class Config:
        _owner: ClassVar[Any] = None

        def build(self, **kwargs: Any) -> Any:
            return self._owner(config=replace(self), **kwargs)

    def __init_subclass__(cls) -> None:
        if "Config" in vars(cls):
            assert "__slots__" in vars(cls.Config), "a dataclass of slots"
            cls.Config._owner = cls

    def _maybe_compile(self, compile_config: CompileConfig | None) -> None:
        if compile_config and compile_config.enable and "loss" in compile_config.components:
            self.fn = torch.compile(self.fn, backend=compile_config.backend)


class ChunkedLossWrapper(BaseLoss):
    """What the trainer looks for: it then calls `set_lm_head`, and the model returns states."""

    def set_lm_head(self, lm_head: nn.Module) -> None:
        self.lm_head = lm_head


def above_the_stand_in() -> Any:
    """A fresh `pact.integrations.torchtitan`, above the stand-in; no module stays registered."""
    loss = ModuleType("torchtitan.components.loss")
    vars(loss).update(IGNORE_INDEX=-100, BaseLoss=BaseLoss, ChunkedLossWrapper=ChunkedLossWrapper)
    stand_in = {
        "torchtitan": ModuleType("torchtitan"),
        "torchtitan.components": ModuleType("torchtitan.components"),
        "torchtitan.components.loss": loss,
    }
    sys.modules.update(stand_in)
    try:
        return importlib.import_module("pact.integrations.torchtitan")
    finally:
        for name in (*stand_in, "pact.integrations.torchtitan"):
            del sys.modules[name]
