"""Run by `tests/wheel.py` where the wheel is installed: `op` with torch alone, or `commands`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch


def op() -> None:
    """A loss and its gradient, against float64 and full logits."""
    import pact_kernels as pk

    assert find_spec("transformers") is None, "the op must need torch alone"
    torch.manual_seed(0)
    hidden = torch.randn(6, 16, requires_grad=True)
    weight, target = torch.randn(64, 16), torch.arange(6)
    reference = pk.ReferenceStates(torch.randn(6, 16), torch.randn(6, 16), weight)
    ids, weights = torch.tensor([3, 9, 40]), torch.tensor([0.5, 0.2, 0.3])
    step = torch.arange(6)
    loss = pk.pact_loss(hidden, weight, target, ids, weights, step, reference)
    loss.loss.backward()
    full = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, target)
    assert abs(float(loss.cross_entropy) - float(full)) < 1e-5, (loss, full)
    assert hidden.grad is not None and bool(hidden.grad.isfinite().all())


def commands() -> None:
    """Data that the wheel brings, and a run: train, resume, show, merge."""
    from tiny import save_tiny

    from pact.discovery import SafetyTokens

    save_tiny("model")
    SafetyTokens(torch.tensor([5, 17]), torch.tensor([0.6, 0.3])).save("tokens.safetensors")
    turns = [("user", "hello"), ("assistant", "I cannot help with that request.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    Path("train.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    assert "llama" in _pact("recipe", "list")
    run = ["train", "--model", "model", "--train-file", "train.jsonl", "--output-dir", "run"]
    run += ["--tokens", "tokens.safetensors", "--max-steps", "2", "--cache-dir", "cache"]
    _pact(*run)
    _pact(*run, "--resume")
    assert "5" in _pact("show", "--tokens", "tokens.safetensors", "--tokenizer", "model")
    _pact("merge", "--adapters", "run", "--output-dir", "merged")
    assert Path("merged/model.safetensors").is_file()


def _pact(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("pact")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    {"op": op, "commands": commands}[sys.argv[1]]()
