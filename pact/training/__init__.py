"""Fine-tuning with the PACT objective.

One module a step, each imported when it is asked for:

    config      the settings, as flags and YAML keys see them
    schedule    what depends on the step alone: the order of the data, the learning rate, the noise
    student     the model to train, and its states on the answer rows
    loop        `fit`: the loop itself, on a model and data in memory
    checkpoint  what a run needs to go on after a stop
    metrics     a record every few steps: JSON lines and a plot
    run         `train`: from files to a trained model on disk
    trainer     `PactTrainer`: the same objective on transformers.Trainer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact.training.config import FitConfig, TrainConfig
    from pact.training.loop import fit
    from pact.training.run import TrainResult, train
    from pact.training.trainer import PactTrainer

__all__ = ["FitConfig", "PactTrainer", "TrainConfig", "TrainResult", "fit", "train"]

_HOME = {
    "FitConfig": "pact.training.config",
    "PactTrainer": "pact.training.trainer",
    "TrainConfig": "pact.training.config",
    "TrainResult": "pact.training.run",
    "fit": "pact.training.loop",
    "train": "pact.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that reading the settings does not load the Trainer."""
    if name not in _HOME:
        raise AttributeError(f"module 'pact.training' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
