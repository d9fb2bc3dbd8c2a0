"""Two processes train what one trains, in trainers that are not the package's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from tests.integrations.distributed import WAYS
from tests.rounding import AFTER_ADAM
from tests.tiny import tiny_llama
from tests.training.problem import largest_error, parameters_of

ROOT = Path(__file__).parents[2]


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """The denominator is the rows of the whole step, over accumulation and processes."""
    script = [str(ROOT / "tests/integrations/distributed.py"), str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, *script],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start = parameters_of(tiny_llama())
    for name, train in WAYS.items():
        one, two = train(tmp_path, 1), load_file(tmp_path / f"{name}.safetensors")
        assert largest_error(two, one) < AFTER_ADAM, name
        trained = {key: one[key] for key in start}
        assert largest_error(trained, start) > 1e-2, name
