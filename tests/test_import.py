"""The ops need torch alone, and neither package loads anything heavy before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = ("triton", "transformers", "datasets", "accelerate", "peft", "numpy", "matplotlib")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ops_work_where_only_torch_can_be_imported():
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None   # import raises
import torch, pact_kernels as pk
hidden = torch.randn(5, 4, requires_grad=True)
pk.linear_cross_entropy(hidden, torch.randn(7, 4), torch.tensor([0, 1, 2, -100, 6])).backward()
print(float(hidden.grad[3].abs().max()), float(hidden.grad[0].abs().max()) > 0)
"""
    assert run_python(code).split() == ["0.0", "True"]


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("pact_kernels", ("triton", "transformers", "pact")),
        ("pact", ("torch", "transformers")),
        ("pact.cli", ("torch", "transformers", "datasets")),
    ],
)
def test_import_stays_light(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_every_public_name_is_there():
    code = """
import pact, pact_kernels
for module in (pact, pact_kernels):
    for name in module.__all__:
        getattr(module, name)
print("ok")
"""
    assert run_python(code).strip() == "ok"
