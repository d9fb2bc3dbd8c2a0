"""Models and tokenizers from folders and hub names.

A folder of adapters is merged into its base where the model is a starting point, so that what is
trained, compared or asked is the model that the folder stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pact.common.hub import check_on_hub
from pact.common.settings import user_path
from pact.data.rendering import OF_TEMPLATES, with_template_defaults
from pact.models.files import OF_TOKENIZERS, check_json, loading
from pact.models.whole import check_finite, read_adapters, read_model

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTIZED = ("4bit", "8bit")
ADAPTERS_FILE = "adapter_config.json"
OWN_BASE = "base"
"""Where a run keeps the base of its adapters, if it is in no other place."""


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str = "fp32",
    merge_adapters: bool = False,
    quantize: str | None = None,
) -> Any:
    """Load a causal language model in evaluation mode.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a hub name.
        dtype: "fp32", "bf16" or "fp16".
        merge_adapters: merge a folder's adapters into its base, in fp32, and say so in the log: the
            model is then a starting point like any other. Without, it is a PEFT model that can
            switch them off.
        quantize: "4bit" (nf4, its constants quantised too) or "8bit", by bitsandbytes: the linear
            layers but the head; dtype is that of the rest and of the products.

    Raises:
        ValueError: the folder does not exist or holds no whole model; a weight is not finite; the
            dtype is unknown; the base of adapters is gone; or the adapters cannot be merged.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    path = find_model(name_or_path)
    if not has_adapters(path):
        return _load_whole(path, dtype, quantize)
    if quantize is not None:
        raise ValueError(
            f"a model is quantised whole, got the folder of adapters {path}: run `pact merge` first"
        )
    if not merge_adapters:
        return _load_adapters(Path(path), DTYPES[dtype])
    adapted = _load_adapters(Path(path), torch.float32)
    base = adapted.peft_config[adapted.active_adapter].base_model_name_or_path
    logger.info("%s holds adapters: they are merged into their base %s", path, base)
    model = _merged(adapted, path).to(DTYPES[dtype])
    check_finite(model, path)
    return model


def load_tokenizer(
    name_or_path: str | Path, template_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Load a tokenizer; a missing pad token becomes the end-of-sequence token, if there is one.

    Args:
        name_or_path: a folder, or a hub name.
        template_kwargs: defaults for variables of its chat template, see `with_template_defaults`.

    Raises:
        ValueError: the folder does not exist or holds no whole tokenizer, its chat template is no
            template, or does not read such a variable.
    """
    path = find_model(name_or_path, "tokenizer_config.json")
    if Path(path).is_dir():
        check_json(Path(path), OF_TOKENIZERS)
    with loading(f"the tokenizer of {path}"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    _check_template(tokenizer, path)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return with_template_defaults(tokenizer, template_kwargs)


def _load_whole(path: str, dtype: str, quantize: str | None) -> Any:
    """A model that is no folder of adapters, in evaluation mode."""
    options = {} if quantize is None else {"quantization_config": _quantised(quantize, dtype)}
    model = read_model(AutoModelForCausalLM, path, dtype=DTYPES[dtype], **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"a hub name must be of a whole model, got {path}, which holds adapters: download "
            "it into a folder, and give that"
        )
    _check_generation(model.generation_config, path)
    check_finite(model, path)
    return model.eval()


def _check_generation(config: GenerationConfig | None, path: str | Path) -> None:
    """Refuse generation settings whose ends are no tokens."""
    ends = None if config is None else config.eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise ValueError(
                f"eos_token_id must be a token id, or several, got {ends!r} in "
                f"generation_config.json of {path}: correct it there"
            )


def _check_template(tokenizer: Any, path: str) -> None:
    """Refuse a chat template that is none; one that refuses a conversation is another matter."""
    template = tokenizer.chat_template
    given = template.values() if isinstance(template, dict) else [template]
    fix = "take the one that the model came with"
    for text in given:
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(
                f"the chat template of {path} must be text, got a {type(text).__name__}: {fix}"
            )
        try:
            tokenizer.apply_chat_template([[]], chat_template=text, tokenize=False)
        except (TemplateSyntaxError, RecursionError) as error:
            place = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise ValueError(
                f"the chat template of {path} must be a Jinja template, got {place}{error}: {fix}"
            ) from error
        except OF_TEMPLATES:
            pass  # of a conversation without turns


def _quantised(quantize: str, dtype: str) -> Any:
    """The settings of bitsandbytes.

    Raises:
        ValueError: another name, or bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if quantize not in QUANTIZED:
        raise ValueError(f"quantize must be one of {', '.join(QUANTIZED)}, got {quantize!r}")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize={quantize} needs bitsandbytes: pip install bitsandbytes")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def has_adapters(name_or_path: str | Path) -> bool:
    """Whether a folder holds adapters, which are no model without their base."""
    return (user_path(name_or_path) / ADAPTERS_FILE).is_file()


def find_model(name_or_path: str | Path, cached_file: str = "config.json") -> str:
    """The path of a folder that is there, or a name that the hub has.

    Raises:
        ValueError: it is meant as a folder, which is not there; or the hub does not have it.
    """
    text = str(name_or_path)
    path = user_path(text)
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ValueError(f"a model must be a folder or a hub name, got the file {text}")
    if isinstance(name_or_path, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ValueError(
            f"model folder {text} does not exist: give a folder with config.json, or a hub name"
        )
    check_on_hub(text, "model", cached_file)
    return text


def _load_adapters(folder: Path, dtype: torch.dtype) -> Any:
    """A PEFT model in evaluation mode, on the base that its folder names or keeps."""
    from peft import PeftConfig

    check_json(folder, (ADAPTERS_FILE, "generation_config.json"))
    with loading(f"{ADAPTERS_FILE} of {folder}"):
        config = PeftConfig.from_pretrained(str(folder))
    base = _base_of(folder, config)
    model = read_model(AutoModelForCausalLM, base, dtype=dtype)
    with loading(f"the adapters in {folder}"):
        rows = _saved_vocabulary(folder)
        if rows not in (None, model.get_input_embeddings().weight.shape[0]):
            model.resize_token_embeddings(rows)
    adapted = read_adapters(model, folder, config)
    if (folder / "generation_config.json").is_file():
        with loading(f"generation_config.json of {folder}"):
            own = GenerationConfig.from_pretrained(str(folder))
        adapted.get_base_model().generation_config = own
    _check_generation(adapted.get_base_model().generation_config, folder)
    check_finite(adapted, f"the adapters in {folder} and of their base {base}")
    return adapted.eval()


def _saved_vocabulary(folder: Path) -> int | None:
    """Rows of the embeddings or the head that adapters were saved with, if they were."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as tensors:
        names = [n for n in tensors.keys() if n.endswith(("embed_tokens.weight", "lm_head.weight"))]
        return tensors.get_slice(names[0]).get_shape()[0] if names else None


def _base_of(folder: Path, config: Any) -> str:
    """The base that adapters are of; the run's own comes first, wherever its folder is moved.

    Raises:
        ValueError: they are not of a causal language model, or the base is not there.
    """
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"adapters must be of a causal language model, got task_type={config.task_type!r} in "
            f"{folder}: give the folder of a chat model"
        )
    own = folder / OWN_BASE
    named = config.base_model_name_or_path
    try:
        if (own / "config.json").is_file():
            base = str(own)
            config.base_model_name_or_path = base
        elif not named:
            raise ValueError("none is named")
        else:
            base = find_model(named)
    except ValueError as error:
        raise ValueError(
            f"the base of the adapters in {folder} must be there, got {named!r} in its "
            f"{ADAPTERS_FILE} ({error}): put it there, or correct base_model_name_or_path"
        ) from error
    if has_adapters(base):
        raise ValueError(
            f"the base of the adapters in {folder} must be a whole model, got {base}, which holds "
            "adapters itself: merge those first and name the merged model as base"
        )
    return base


@torch.no_grad()
def _merged(adapted: Any, path: str) -> Any:
    """The model with its adapters in its weights, whose logits are those with adapters on.

    Raises:
        ValueError: there is no way to merge them, or it changes the logits.
    """
    kind = adapted.peft_config[adapted.active_adapter].peft_type
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(
            f"adapters must be of a kind that can be merged into the base's weights, got "
            f"{getattr(kind, 'value', kind)} in {path}: train from the base, or give a whole model"
        )
    before = _probe(adapted)
    try:
        model = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the adapters in {path} cannot be merged ({error})") from error
    change = ((_probe(model) - before).abs().max() / before.abs().max().clamp(min=1.0)).item()
    if not change <= 1e-3:
        raise ValueError(
            f"the adapters in {path} must give the same logits merged as apart, and differ by "
            f"{change:.1e} of their size: they are on a weight that the model uses twice, such as "
            "tied embeddings; merge them into a model with tie_word_embeddings off"
        )
    return model.eval()


def _probe(model: nn.Module) -> torch.Tensor:
    """Logits of a few tokens, (L, V)."""
    return model(input_ids=torch.arange(1, 9)[None], use_cache=False).logits[0].float()
