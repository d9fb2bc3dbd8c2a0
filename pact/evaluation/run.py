"""From files to files: check, load, evaluate, write."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pact.common.outputs import check_new_folder, whole_folder
from pact.common.settings import user_path
from pact.data.conversation import Conversation
from pact.data.dataset import usable
from pact.data.examples import load_examples
from pact.data.folding import folding
from pact.data.sources import open_source
from pact.data.template import Encoder, prompt_text
from pact.discovery import SafetyTokens
from pact.evaluation.config import EvaluateConfig
from pact.evaluation.heldout import expected_answers
from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import JudgeOptions
from pact.evaluation.measure import evaluate
from pact.evaluation.prompts import load_prompts
from pact.evaluation.report import save_evaluation
from pact.evaluation.result import Evaluation
from pact.models import check_head
from pact.models.loading import load_model, load_tokenizer
from pact.reference import AdaptersOff, FrozenModel, Reference


def run_evaluate(config: EvaluateConfig) -> Evaluation:
    """Load what `config` names, evaluate, and write the result; a run that fails writes nothing.

    Raises:
        ValueError: the output folder holds something; data, tokens, judge or a model are missing or
            do not fit; all of it before a model is loaded.
    """
    output = user_path(config.output_dir)
    check_new_folder(output)
    tokenizer = load_tokenizer(config.model, config.chat_template_kwargs)
    prompt_text("Hello", tokenizer)  # a missing chat template is an error now rather than later
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = JudgeOptions(
        refusal_label=config.refusal_label,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=device,
    )
    judge = make_judge(config.judge, options)
    data, splits = _load_data(config, tokenizer)
    tokens = _load_tokens(config, tokenizer)
    is_own_reference = config.drift is not None and config.reference is None
    model = _load_checked(config.model, config, device, merge_adapters=not is_own_reference)
    evaluation = evaluate(
        model,
        tokenizer,
        **data,
        tokens=tokens,
        reference=_load_reference(config, model, device),
        judge=judge,
        max_new_tokens=config.max_new_tokens,
        prefill=config.prefill,
        batch_size=config.batch_size,
        max_length=config.max_length,
    )
    evaluation = replace(evaluation, settings=asdict(config) | splits)
    with whole_folder(output) as folder:
        save_evaluation(evaluation, folder)
    return evaluation


def _load_data(config: EvaluateConfig, tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conversations of every source that is given, and which splits they are.

    What the template has no room for is an error here, before a model is loaded, or left out.
    """
    prompt = partial(prompt_text, tokenizer=tokenizer)
    fold = folding(tokenizer, config.fold_system)
    uses: dict[str, Any] = {
        "harmful": (load_prompts, prompt),
        "benign": (load_prompts, prompt),
        "heldout": (load_examples, Encoder(tokenizer)),
        "task": (load_examples, prompt),
        "drift": (load_examples, Encoder(tokenizer)),
    }
    data: dict[str, Any] = {}
    splits: dict[str, str] = {}
    for name, (load, use) in uses.items():
        path = getattr(config, name)
        if not path:
            continue
        found = load(
            path,
            split=config.split,
            subset=config.subset,
            columns=config.columns,
            skip_bad_rows=config.skip_bad_rows,
        )
        if name == "task":
            expected_answers(found)

        def used(turns: Conversation, use: Any = use) -> Any:
            return use(fold(turns))

        data[name] = [fold(turns) for turns in usable(found, used, config.skip_bad_rows)]
        split = open_source(path, config.split, config.subset).split
        if split is not None:
            splits[name] = split
    return data, {"splits": splits} if splits else {}


def _load_tokens(config: EvaluateConfig, tokenizer: Any) -> SafetyTokens | None:
    """The safety tokens, checked against the tokenizers of the model and its reference."""
    if config.drift is None or config.tokens is None:
        return None
    tokens = SafetyTokens.load(config.tokens)
    tokens.check_tokenizer(tokenizer)
    if config.reference is not None:
        tokens.check_tokenizer(load_tokenizer(config.reference))
    folder = user_path(config.model)
    if not config.reference and folder.is_dir() and not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"drift needs a reference, got none for {config.model}, which has no adapters to "
            "switch off: give the aligned model as reference"
        )
    return tokens


def _load_reference(config: EvaluateConfig, model: nn.Module, device: str) -> Reference | None:
    if config.drift is None:
        return None
    if config.reference is None:
        return AdaptersOff(model)
    return FrozenModel(_load_checked(config.reference, config, device))


def _load_checked(
    name: str, config: EvaluateConfig, device: str, merge_adapters: bool = True
) -> Any:
    model = load_model(name, dtype=config.dtype, merge_adapters=merge_adapters).to(device)
    check_head(model)
    return model
