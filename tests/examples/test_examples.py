"""Every script of examples/ runs, on a model small enough, and does what it says."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import TrainingArguments

from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from tests.tiny import save_tiny, tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Model, tokens, data and output."""
    save_tiny(tmp_path / "model")
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(tmp_path / "tokens.safetensors")
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    # Two steps of the twenty are enough.
    own = TrainingArguments.__post_init__

    def short(self: Any) -> None:
        self.max_steps, self.logging_steps, self.use_cpu, self.bf16 = 2, 1, True, False
        own(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", short)
    return [
        str(tmp_path / name) for name in ("model", "tokens.safetensors", "data.jsonl", "output")
    ]


@pytest.mark.parametrize("name", ["hf_trainer", "trl_sft", "any_trainer"])
def test_a_trainer(name: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    main(*files)
    assert (Path(files[3]) / "adapter_model.safetensors").is_file()
    assert "'loss'" in capsys.readouterr().out


def test_a_loop_of_ones_own(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"](*files, "8")
    printed = capsys.readouterr().out
    kls = [float(number) for number in re.findall(r"KL (\S+)", printed)]
    assert len(kls) == 8
    assert abs(kls[0]) < 0.1 * max(kls)  # at first the student is its reference
    assert (Path(files[3]) / "adapter_model.safetensors").is_file()


def run(*command: str, **environment: str) -> str:
    """What a command printed."""
    root = str(EXAMPLES.parent)
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHON": sys.executable, **environment}
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_beside_ligers_cross_entropy(files: list[str]) -> None:
    """liger-kernel's own kernels, in the interpreter."""
    pytest.importorskip("liger_kernel")
    script = str(EXAMPLES / "beside_liger.py")
    printed = run(sys.executable, script, *files[:3], "1", TRITON_INTERPRET="1")
    (losses,) = re.findall(r"cross-entropy ([\d.]+), KL ([\d.]+)", printed)
    assert float(losses[0]) > 1  # a tiny model is far from the data
    assert float(losses[1]) > 0  # over the selection also where student and reference agree


def test_a_long_sequence() -> None:
    """Memory of the process, so with room; the logits would take 250 MiB."""
    printed = run(sys.executable, str(EXAMPLES / "long_context.py"), "16384", "16", "4000")
    extra, logits = map(int, re.findall(r"(-?\d+) MiB", printed))
    assert logits == 250 and extra < 125


def test_a_head_in_two_parts() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    printed = run(sys.executable, *launcher, str(EXAMPLES / "vocabulary_parallel.py"))
    assert "2 processes, 16002 of 32003 tokens" in printed
    loss, one = re.search(r"loss ([\d.]+), by one process ([\d.]+)", printed).groups()  # type: ignore[union-attr]
    assert float(loss) == pytest.approx(float(one), rel=1e-6)
    assert float(printed.split()[-1]) < 1e-5


def test_from_a_spreadsheet_to_a_merged_model(files: list[str], tmp_path: Path) -> None:
    data = tmp_path / "questions.csv"
    rows = [f"question {n},answer {n}" for n in range(8)]
    data.write_text("\n".join(["question,answer", *rows]))
    model, tokens, _, output = files
    script = str(EXAMPLES / "from_csv.sh")
    cache = str(tmp_path / "cache")
    printed = run("sh", script, model, tokens, str(data), output, MAX_STEPS="2", HOME=cache)
    assert re.search(r"answer \d", printed)  # the dry run's first batch
    assert (Path(output) / "adapter_model.safetensors").is_file()
    assert (Path(f"{output}-merged") / "model.safetensors").is_file()


def test_distillation_from_a_stored_file(tmp_path: Path) -> None:
    """The student comes nearer to a teacher of other weights, of which it has 8 tokens a row."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 320, (4, 16), generator=g)
    with torch.no_grad():
        log_probs = tiny_llama(seed=1)(ids).logits[:, :-1].log_softmax(-1)
    values, tokens = log_probs.topk(8)
    stored = {"input_ids": ids, "token_ids": tokens, "log_probs": values}
    save_file({n: t.contiguous() for n, t in stored.items()}, tmp_path / "top.safetensors")
    main = runpy.run_path(str(EXAMPLES / "distill_top_k.py"))["main"]
    losses = main(str(save_tiny(tmp_path / "model")), str(tmp_path / "top.safetensors"), "30")
    assert losses[-1] < 0.7 * losses[0]


def test_axolotls_keys_are_the_plugins() -> None:
    """The rest is Axolotl's own; `tests/integrations/test_axolotl.py` runs the plugin."""
    settings = yaml.safe_load((EXAMPLES / "axolotl.yaml").read_text(encoding="utf-8"))
    assert settings["plugins"] == ["pact.integrations.axolotl.PactPlugin"]
    assert PactConfig(**settings["pact_config"]).settled.gate is False


def test_every_script_is_short_and_tested() -> None:
    for path in (path for path in EXAMPLES.iterdir() if path.is_file()):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 60, path.name
        assert path.stem in Path(__file__).read_text(encoding="utf-8"), path.name
