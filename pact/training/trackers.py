"""Trackers such as TensorBoard or Weights & Biases, which accelerate starts by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from pact.training.config import FitConfig
from pact.training.metrics import Record

TRACKERS = "trackers"
"""Folder, in a run's, of what trackers write to the disk."""


def check_trackers(config: FitConfig) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ValueError: one is; it names those that are there.
    """
    available = [str(name) for name in get_available_trackers()]
    missing = [name for name in config.report_to if name not in available]
    if missing:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        raise ValueError(
            f"report_to must name trackers that are installed, got {missing[0]!r}: pip install it "
            f"(accelerate knows {known}; installed: {', '.join(available) or 'none'})"
        )


def started_trackers(
    accelerator: Accelerator, config: FitConfig, output_dir: Path | None
) -> Callable[[Record], None]:
    """Start the trackers that are asked for; returns what gives them a record.

    Raises:
        ValueError: one of them is unknown or not installed.
    """
    if not config.report_to:
        return lambda record: None
    check_trackers(config)
    place = Path(".") if output_dir is None else output_dir / TRACKERS
    accelerator.project_configuration.set_directories(str(place))
    accelerator.log_with = list(config.report_to)
    settings = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in vars(config).items()
    }
    accelerator.init_trackers("pact", settings)

    def track(record: Record) -> None:
        values = {name: value for name, value in record.items() if name != "step"}
        accelerator.log(values, step=int(record["step"]))

    return track
