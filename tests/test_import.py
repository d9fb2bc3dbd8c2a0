"""The ops need torch alone, and neither package loads anything heavy before it is used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pact_kernels

ROOT = Path(__file__).parents[1]
BLOCKED = ("triton", "transformers", "datasets", "accelerate", "peft", "numpy", "matplotlib")


def run_python(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
        # the oracle is the code of no default, and triton comes with the kernels
        (
            "pact_kernels",
            ("triton", "transformers", "pact", "pact_kernels.naive", "pact_kernels.kernels"),
        ),
        ("pact", ("torch", "transformers", "pact_kernels")),
    ],
)
def test_import_stays_light(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_the_command_line_imports_what_is_heavy_inside_its_commands():
    """Every module of it, whatever it imports by way of others."""
    heavy = (
        *("torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "pact_kernels"),
        *("pact.training", "pact.discovery", "pact.evaluation"),
    )
    code = f"""
import importlib, pkgutil, sys
import pact.cli
for module in pkgutil.walk_packages(pact.cli.__path__, "pact.cli."):
    importlib.import_module(module.name)
print([name for name in {heavy!r} if name in sys.modules], "pact.cli.train" in sys.modules)
"""
    assert run_python(code).split() == ["[]", "True"]


def test_both_packages_say_the_version_of_the_checkout_without_its_installation():
    """-S hides what is installed."""
    code = f"""
import sys
sys.path[:] = [{str(ROOT)!r}, *(path for path in sys.path if path.startswith(sys.base_prefix))]
import pact
print(pact.__version__, "torch" in sys.modules)
"""
    version = (ROOT / "pact_kernels/VERSION").read_text(encoding="ascii").strip()
    assert run_python(code, "-S", "-I").split() == [version, "False"]
    assert pact_kernels.__version__ == version


def test_the_distribution_has_the_version_of_its_packages():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in setup["project"]
    assert setup["tool"]["setuptools"]["dynamic"]["version"] == {"file": "pact_kernels/VERSION"}
    assert "VERSION" in setup["tool"]["setuptools"]["package-data"]["pact_kernels"]


def test_every_public_name_is_there():
    code = """
import pact, pact_kernels
for module in (pact, pact_kernels):
    for name in module.__all__:
        getattr(module, name)
print("ok")
"""
    assert run_python(code).strip() == "ok"
