"""The interpreter truncates fp32 to bf16; a GPU rounds to nearest, and so must a test of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, the interpreter rounds fp32 to bf16 as torch does, ties to even."""
    convert = interpreter._convert_float

    def converted(values: Any, source: tl.dtype, target: tl.dtype, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.atleast_1d(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16).reshape(np.shape(values))

    monkeypatch.setattr(interpreter, "_convert_float", converted)
