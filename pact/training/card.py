"""A model card: what was trained, on what and how, and how far it moved from its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pact.common.settings import user_path
from pact.objective import PactConfig
from pact.training.config import OF_ADAPTERS, TrainConfig
from pact.training.metrics import Record

CARD = "README.md"
SETTINGS = (
    "learning_rate",
    "schedule",
    "optimizer",
    "epochs",
    "max_steps",
    "batch_size",
    "max_length",
    "dtype",
    "seed",
)
"""Those of the run that a reader asks for; config.yaml has all."""
ADAPTER_SETTINGS = (*OF_ADAPTERS, "quantize")


def write_card(
    folder: Path,
    config: TrainConfig,
    pact: PactConfig,
    records: Sequence[Record],
    contents: Mapping[str, str],
) -> Path:
    """Write the card into a run's folder, in the place of one that PEFT wrote.

    Args:
        folder: the run's.
        config: the run.
        pact: the objective's settings.
        records: of the run, `fit`'s.
        contents: digests of what it read, see `pact.training.identity`.
    """
    path = folder / CARD
    path.write_text(card_text(config, pact, records, contents), encoding="utf-8")
    return path


def card_text(
    config: TrainConfig,
    pact: PactConfig,
    records: Sequence[Record],
    contents: Mapping[str, str],
) -> str:
    """The card: a head of YAML as the hub reads it, then Markdown."""
    whole = config.full_finetuning
    is_pact = config.method == "pact"
    base = config.model if not user_path(config.model).exists() else None
    head: dict[str, Any] = {
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["pact" if is_pact else "sft", *(() if whole else ("lora",))],
    }
    if base is not None:  # a folder's name says nothing elsewhere
        head["base_model"] = base
    settings = {name: getattr(config, name) for name in SETTINGS}
    if not whole:
        settings |= {name: getattr(config, name) for name in ADAPTER_SETTINGS}
    if is_pact:
        settings |= {name: getattr(pact, name) for name in ("over", "kl_weight", "kl_step_tau")}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=True).strip(),
        "---",
        "",
        f"# {Path(config.model).name}, fine-tuned"
        + (" with its alignment kept (PACT)" if is_pact else ""),
        "",
        _opening(config, is_pact),
        "",
        "## Measured, in nats",
        "",
        *_measured(records, is_pact, config.keep_best),
        "",
        "## Settings",
        "",
        *(f"- {name}: {_plain(value)}" for name, value in settings.items() if value is not None),
        "",
        "Digests of what was read: "
        + ", ".join(f"{name} `{digest}`" for name, digest in contents.items()),
        "",
    ]
    return "\n".join(lines)


def _opening(config: TrainConfig, is_pact: bool) -> str:
    trained = "All weights were trained" if config.full_finetuning else "LoRA adapters were trained"
    told = (
        " While it was trained, its confidence on a few safety tokens was matched to that of the "
        "model it began from (arXiv 2603.07445)."
        if is_pact
        else " Nothing held its refusals: fine-tuning of this kind erodes them."
    )
    return (
        f"{trained} on {Path(config.train_file).name}.{told} Whether it still refuses what it "
        "should is for `pact evaluate` to say."
    )


def _measured(records: Sequence[Record], is_pact: bool, keep_best: bool) -> list[str]:
    """The step of the saved weights, and what was measured at it, or in training last before it."""
    trained = [record for record in records if "loss" in record]
    looked = [record for record in records if "eval_loss" in record]
    if not trained:
        return ["- nothing: no step was left to do"]
    found = looked[-1] if looked else None
    if looked and keep_best:
        found = min(looked, key=lambda record: record["eval_loss"])
    taken = records[-1]["step"]
    saved = found["step"] if found is not None and keep_best else taken
    lines = [f"- the saved weights: those of step {saved:.0f}, of {taken:.0f} that were taken"]
    before = [record for record in trained if record["step"] <= saved]
    if before:
        last = before[-1]
        lines.append(
            f"- in training, step {last['step']:.0f}: cross-entropy {last['cross_entropy']:.4f}"
        )
        if is_pact:
            lines.append(
                f"- drift on the training rows there, KL to the reference: {last['kl']:.4g}"
            )
    if found is not None:
        lines.append(
            f"- on other examples, at step {found['step']:.0f}: cross-entropy "
            f"{found['eval_cross_entropy']:.4f}"
            + (f", KL to the reference {found['eval_kl']:.4g}" if is_pact else "")
        )
        if "eval_refusals" in found:
            lines.append(f"- harmful requests refused there: {found['eval_refusals']:.0%}")
    return lines


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
