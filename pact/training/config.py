"""Settings of a training run, as flags and YAML keys see them, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pact.common.disk import replacing
from pact.common.fields import COUNT, MOST, Bounds, check_fields

CONFIG_FILE = "config.yaml"
OF_ADAPTERS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "lora_rslora",
    "lora_dora",
)
"""Settings without effect in full fine-tuning."""
OF_EVALUATIONS = ("eval_split", "eval_every", "patience", "probe_prompts")
"""Settings without effect where there is no eval_file."""
Schedule = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "inverse_sqrt",
    "polynomial",
]


BOUNDS = {
    "learning_rate": Bounds(0, 100, open_least=True),
    "epochs": COUNT,
    "max_steps": COUNT,
    "batch_size": COUNT,
    "micro_batch_size": COUNT,
    "warmup_ratio": Bounds(0, 1),
    "weight_decay": Bounds(0, 10**9),
    "max_grad_norm": Bounds(0, 10**9, open_least=True, or_inf=True),
    "seed": Bounds(0, 2**32 - 1),  # as numpy and Trainer have it
    "save_every": COUNT,
    "save_total_limit": COUNT,
    "log_every": COUNT,
    "eval_every": COUNT,
    "patience": COUNT,
    "skip_bad_steps": Bounds(0, MOST),
    "refusal_share": Bounds(0, 1, open_most=True),
    "anchor_share": Bounds(0, 1, open_least=True, open_most=True),
    "anchor_steps": COUNT,
    "max_length": Bounds(2, MOST),
    "pack_length": COUNT,
    "lora_r": Bounds(1, 65536),
    "lora_alpha": Bounds(1, 10**6),
    "lora_dropout": Bounds(0, 1, open_most=True),
}
"""Those of numbers: beyond them a value is a slip, for no run has a use for it."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The loop: how long, how fast, how precise."""

    learning_rate: float = 3e-5
    """Peak learning rate of AdamW (the paper's)."""
    epochs: int = 3
    """Passes over the data."""
    max_steps: int | None = None
    """Optimiser steps in all; unset follows epochs."""
    batch_size: int = 8
    """Examples of one optimiser step, over all processes."""
    micro_batch_size: int | None = None
    """Examples of one forward pass, without effect on the result; unset is the whole batch."""
    group_by_length: bool = False
    """Draw the examples of a step at similar length, so that less of a padded batch is padding."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises; after it, the schedule."""
    schedule: Schedule = "cosine"
    """How the learning rate falls, by transformers' name; cosine is half a cosine down to 0."""
    optimizer: str = "adamw_torch"
    """By transformers' name (TrainingArguments.optim), such as adamw_torch_fused or adafactor."""
    weight_decay: float = 0.0
    """AdamW's decay of every trained matrix; biases and norms are spared."""
    max_grad_norm: float = 1.0
    """Longest gradient that is not scaled down; inf scales none."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16. What is trained is kept in float32 either way."""
    gradient_checkpointing: bool = False
    """Form each layer's activations again in the backward pass: less memory, more time."""
    seed: int = 0
    """Order of the data, dropout and the adapters' first values depend on it alone."""
    save_every: int | None = 500
    """Steps between checkpoints; unset writes none."""
    save_total_limit: int = 2
    """Checkpoints that are kept, the newest ones: a damaged one is passed over for the next."""
    log_every: int = 1
    """Steps between records of the metrics, each the mean over them."""
    eval_every: int | None = None
    """Steps between evaluations, where there are examples for them; unset is once an epoch."""
    patience: int | None = None
    """Evaluations without a better one after which the run stops; unset runs to the end."""
    keep_best: bool = True
    """End with the weights whose evaluation was the best, where there are evaluations."""
    report_to: tuple[str, ...] = ()
    """Trackers that get the records too, by accelerate's names: tensorboard, wandb, mlflow, ..."""
    skip_bad_steps: int = 0
    """Steps in all whose loss or gradient may be NaN or infinite: each is left out, as if it had
    not been, and logged with its examples; one more ends the run."""
    resume: bool = False
    """Go on from the newest checkpoint of the output folder; without one, start anew."""

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        for name, valid, need in (
            (
                "micro_batch_size",
                self.micro_batch_size is None or self.micro_batch_size <= self.batch_size,
                f"from 1 to batch_size={self.batch_size}, or unset",
            ),
            (
                "weight_decay",
                self.weight_decay * self.learning_rate < 1,
                f"below 1 / learning_rate={self.learning_rate}, where a weight is left nothing",
            ),
        ):
            if not valid:
                raise ValueError(f"{name} must be {need}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """The run: what is trained, on what, and where it goes."""

    model: str
    """The aligned chat model: a folder, or a hub name. A folder of adapters is merged into its
    base, and the run's folder keeps that base beside new adapters."""
    train_file: str
    """Conversations, or token ids with labels: .jsonl, .json, .csv, .parquet, a folder of them, a
    saved data set, or a hub name."""
    split: str = "train"
    """Which split of train_file and of refusals, where a data set has several."""
    subset: str | None = None
    """Which configuration of train_file and of eval_file, where a data set has several."""
    columns: dict[str, str] | None = None
    """What train_file and eval_file call the columns that are read, such as {"instruction":
    "question", "output": "answer"}; see `pact.data.forms` for their names."""
    fold_system: bool = False
    """Put a system turn into the user's first one where the chat template has none."""
    skip_bad_rows: bool = False
    """Leave out rows that are malformed or that the template has no room for, and count them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as {"enable_thinking": false}; the saved tokenizer keeps
    them as defaults."""
    refusals: str | None = None
    """Refusals of harmful requests, such as `pact refusals` writes: some join the conversations,
    which gives the pull on the safety tokens rows where there is something to hold."""
    refusal_share: float = 0.1
    """How many: their share of all. Unused where refusals is unset."""
    anchors: str | None = None
    """Conversations that end in the reference's own words, such as `pact refusals --keep all`
    writes of requests to refuse and of harmless ones: the model is held to the reference at the
    first tokens of these answers and learns nothing of them. It keeps refusals where the data have
    none."""
    anchor_share: float = 0.5
    """How many: their share of all examples, each as often as it takes. Unused where anchors is
    unset."""
    anchor_steps: int = 8
    """Tokens of each answer that are held."""
    eval_file: str | None = None
    """Other examples, of any form that train_file may have: their loss is looked at on the way, the
    best weights are kept, and `patience` may end the run."""
    eval_split: str | None = None
    """Which split of eval_file; unset is `split`."""
    probe_prompts: str | None = None
    """Harmful requests that are asked at each evaluation: the share that is refused is reported."""
    output_dir: str
    """Folder for the trained model, its config, metrics and checkpoints; it must be empty."""
    method: Literal["pact", "plain"] = "pact"
    """pact: cross-entropy and the pull on the safety tokens; plain: cross-entropy alone."""
    tokens: str | None = None
    """Safety tokens, the file that `pact discover` writes; unused by method=plain."""
    max_length: int = 512
    """Tokens kept of each conversation, from its beginning."""
    packing: bool = False
    """Put examples end to end in lines, each attending to itself alone, instead of padding them."""
    pack_length: int | None = None
    """Most tokens of such a line; unset is max_length."""
    full_finetuning: bool = False
    """Train every weight; off trains LoRA adapters."""
    lora_r: int = 8
    """Rank of the adapters (the paper's)."""
    lora_alpha: int = 32
    """Scale of the adapters, times 1 / rank (the paper's)."""
    lora_dropout: float = 0.0
    """Dropout at the adapters' input."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Load the frozen model in nf4 or in 8 bits, by bitsandbytes, under the adapters (QLoRA)."""
    lora_rslora: bool = False
    """Scale the adapters by alpha / sqrt(rank) instead of alpha / rank."""
    lora_dora: bool = False
    """Train the adapted matrices' magnitudes apart from their directions (DoRA)."""
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter (the paper's)."""
    cache: bool = True
    """Compute the reference's values once, before the first epoch, and keep them on disk for this
    run and later ones; off runs the reference at every step."""
    cache_dir: str | None = None
    """Folder of such caches, each under a fingerprint of all it depends on; unset is
    ~/.cache/pact/reference."""
    cache_dtype: Literal["fp16", "fp32"] = "fp16"
    """Precision of the kept values."""
    reference_model: str | None = None
    """A model to hold to, loaded in dtype; unset is the model itself, adapters off or copied."""
    dry_run: bool = False
    """Load and check everything, print the plan and the first batch, and train nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "pact" and self.tokens is None:
            raise ValueError(
                "method=pact needs the safety tokens, got tokens unset: give the file that "
                "`pact discover` writes, or use method=plain"
            )
        if self.quantize is not None and self.full_finetuning:
            raise ValueError("quantize is of a frozen model under adapters: leave it unset")
        for name in OF_ADAPTERS:
            value = getattr(self, name)
            if self.full_finetuning and value != getattr(TrainConfig, name):
                raise ValueError(
                    f"{name} is of adapters, got {value!r} with full_finetuning: leave one of them "
                    "unset"
                )
        if self.method == "plain" and self.anchors is not None:
            raise ValueError(
                "anchors are held to the reference, got method=plain: set method=pact, or leave "
                "them unset"
            )
        if self.pack_length is not None and not self.packing:
            raise ValueError(
                f"pack_length is of packed lines, got {self.pack_length} without packing: set "
                "packing, or leave it unset"
            )
        if self.cache_dir is not None and not self.cache:
            raise ValueError(
                f"cache_dir is of the reference's cache, got {self.cache_dir} with cache off: "
                "leave one of them unset"
            )
        if self.eval_file is None:
            for name in OF_EVALUATIONS:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of evaluations: give eval_file, or leave it unset")
        if not self.lora_targets:
            raise ValueError(f"lora_targets must be at least one name, got {self.lora_targets!r}")


def save_configs(folder: Path, configs: Sequence[Any]) -> Path:
    """Write the fields of several configs as one YAML file, which `--config` reads back.

    Readers see the whole file or none.

    Args:
        folder: an existing folder.
        configs: dataclasses without a field name in common.

    Returns:
        The file's path.
    """
    path = folder / CONFIG_FILE
    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(resolved(configs), sort_keys=False), encoding="utf-8")
    return path


def resolved(configs: Sequence[Any]) -> dict[str, Any]:
    """The fields of several configs by name, as YAML and JSON have them."""
    fields = {name: value for config in configs for name, value in asdict(config).items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
