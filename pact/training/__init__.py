"""Fine-tuning with the PACT objective.

One module a step, each imported when it is asked for:

    config      the settings, as flags and YAML keys see them
    schedule    what depends on the step alone: the order of the data, the learning rate, the noise
    student     the model to train, and its states on the answer rows
    checks      what student, reference and batches must be, whichever way they are trained
    loop        `fit`: the loop itself, on a model and data in memory
    finite      NaN and infinity, noticed before a file is written
    checkpoint  what a run needs to go on after a stop
    identity    what a run is of: only the same run is gone on with
    folder      the run's folder, held by one run at a time
    metrics     a record every few steps: JSON lines and a plot
    saving      the trained model on disk
    run         `train`: from files to a trained model on disk
    trainer     `PactTrainer`: the same objective on transformers.Trainer; `trainer_settings` has
                what of Trainer's it cannot honour, `trainer_batches` what it asks of data
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact.common.lazy import lazy_names

if TYPE_CHECKING:
    from pact.training.config import FitConfig, TrainConfig
    from pact.training.loop import fit
    from pact.training.run import TrainResult, train
    from pact.training.trainer import PactTrainer

__all__ = ["FitConfig", "PactTrainer", "TrainConfig", "TrainResult", "fit", "train"]

__getattr__ = lazy_names(
    __name__,
    {
        "FitConfig": "pact.training.config",
        "PactTrainer": "pact.training.trainer",
        "TrainConfig": "pact.training.config",
        "TrainResult": "pact.training.run",
        "fit": "pact.training.loop",
        "train": "pact.training.run",
    },
)
