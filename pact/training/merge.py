"""Adapters put into the model below them, saved as a whole model that needs no PEFT."""

from __future__ import annotations

from pathlib import Path

from pact.common.outputs import check_new_folder, whole_folder
from pact.common.settings import user_path
from pact.models.loading import DTYPES, has_adapters, load_model, load_tokenizer
from pact.models.whole import check_finite
from pact.training.saving import save_tokenizer, stop_at_turns


def merge(adapters: str | Path, output_dir: Path, *, dtype: str = "bf16") -> Path:
    """Merge a folder of adapters into its base and save the model, its tokenizer with it.

    Args:
        adapters: the folder.
        output_dir: new or empty; readers see the whole model or none.
        dtype: what is saved; the weights are summed in fp32.

    Raises:
        ValueError: there are no adapters; the output is not empty or cannot be written; a merged
            weight is beyond the dtype; or what `load_model` refuses.
    """
    folder = user_path(output_dir)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    if not user_path(adapters).is_dir() or not has_adapters(adapters):
        raise ValueError(
            f"adapters must be a folder with an adapter_config.json, got {adapters}: give the "
            "output_dir of a run that trained adapters"
        )
    check_new_folder(folder)
    tokenizer = load_tokenizer(adapters)
    model = load_model(adapters, merge_adapters=True)
    stop_at_turns(model, tokenizer)
    model = model.to(DTYPES[dtype])
    check_finite(model, f"{adapters}, merged,")
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
    return folder
