"""Adapters put into the model below them, saved as a whole model that needs no PEFT."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pact.loading import DTYPES, has_adapters, load_model, load_tokenizer
from pact.training.saving import stop_at_turns


def merge(adapters: str | Path, output_dir: Path, *, dtype: str = "bf16") -> Path:
    """Merge a folder of adapters into its base and save the model, its tokenizer with it.

    Args:
        adapters: the folder.
        output_dir: new or empty; readers see the whole model or none.
        dtype: what is saved; the weights are summed in fp32.

    Raises:
        ValueError: there are no adapters; the output is not empty; or what `load_model` refuses.
    """
    folder = output_dir.expanduser()
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    if not Path(adapters).expanduser().is_dir() or not has_adapters(adapters):
        raise ValueError(
            f"adapters must be a folder with an adapter_config.json, got {adapters}: give the "
            "output_dir of a run that trained adapters"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir must be new or empty, got {folder}: name another")
    tokenizer = load_tokenizer(adapters)
    model = load_model(adapters, merge_adapters=True)
    stop_at_turns(model, tokenizer)
    model = model.to(DTYPES[dtype])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
        whole = Path(partial) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    return folder
