"""What every implementation that is timed offers to the harness: ours, floors and the peers."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs

Setting = Mapping[str, Any]
"""One way to run a peer: plain values alone, so that it can be written down."""


Outputs = Mapping[str, Tensor]
"""Results of one call, detached: the loss, or what the op returns, by name; of an op with a
backward pass also OF_HIDDEN and, with a trainable head, OF_WEIGHT."""
OF_HIDDEN, OF_WEIGHT = "gradient of hidden", "gradient of weight"
Call = Callable[[], Outputs]
"""One forward and, where the op has one, backward pass, from the inputs on. It leaves no gradient
in the inputs' `.grad`, so that the next call does not add to it."""
MOST_VERSIONS = 256
"""Versions of one function in a process of many cases; torch's limit, 8, would end it there."""


class Peer(ABC):
    """One implementation; `registry` holds all of them."""

    name: str
    """As the tables call it."""
    ops: tuple[str, ...]
    """What it has an implementation of, or an answer to."""
    distribution: str = "torch"
    """What has to be installed for it, as a package index calls it."""
    gpu_kernels: str = ""
    """Whose kernels it consists of, where these need a GPU."""
    compiles: bool = False
    """Whether torch.compile is at work, which has to be done ahead of what is timed."""
    logit_bytes: int = 0
    """Copies of a logit that are held where all are formed: fp32 and the states' dtype, softmax,
    gradient."""
    is_floor: bool = False
    """Whether it is there to divide by: it is not compared, and its memory is not measured."""

    @abstractmethod
    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        """What is timed. All that a user does once, such as compiling, is done here."""

    def version(self) -> str | None:
        """The version of its package; None where that is not installed."""
        return installed_version(self.distribution)

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        """Why it cannot run this case here, in words for the table; None where it can."""
        if case.op not in self.ops:
            return f"it has no {case.op}"
        if self.version() is None:
            return f"{self.distribution} is not installed"
        if self.gpu_kernels and device.type != "cuda":
            return f"its kernels are {self.gpu_kernels} and need a GPU"
        if self.compiles and (reason := cannot_compile(device)) is not None:
            return reason
        return self.unsuited(case, device)

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        """Why this device or these sizes are not for it, though it is installed."""
        return None

    def needed_bytes(self, case: Case) -> int:
        """Roughly what it takes where it forms all logits; 0 of the others."""
        return self.logit_bytes * case.rows * case.vocabulary

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        """The ways to run it that are worth a try; the fastest is the one that is compared."""
        return [{}]

    def other_objective(self, case: Case) -> str | None:
        """What it computes in the place of the case's objective, in words for the table: its time
        stands for a price, and its results are compared with nothing. None where they are equal.
        """
        return None


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, which is not imported; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile has nothing to make machine code with; None where it has."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        found = shutil.which(compiler)
        return None if found else f"torch.compile needs a C++ compiler: there is no {compiler}"
    return None if find_spec("triton") else "torch.compile needs triton, which is not installed"


def compile_now(call: Call) -> Call:
    """The call, made once: whatever is compiled at a first call has been, backward included."""
    with torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS):
        call()
    return call
