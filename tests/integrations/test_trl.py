"""`PactSFTTrainer`: TRL prepares the data, and the loss is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from pact.data.collate import Collator
from pact.discovery import SafetyTokens
from pact.integrations.trl import PactSFTTrainer, TrlPackedCollator, split, with_steps
from pact.objective import PactConfig
from pact.reference import AdaptersOff, FrozenModel
from pact.training import PactTrainer
from tests.rounding import STATES, SUMS
from tests.tiny import CHATML, save_tiny, tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)
NO_PULL = PactConfig(over="selection", kl_weight=0.0, gate=False)
MARKED = CHATML.replace(
    "message['content'] + '<|im_end|>' + '\n' }}",
    "}}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + "
    "'<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}",
).replace("+ '\n' + }}", "+ '\n' }}")
"""ChatML with the assistant's words marked, as TRL's training templates have it."""


def prompts(count: int = 6) -> Dataset:
    """Answers of 1 to 6 sentences."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"question {n}"}],
                "completion": [{"role": "assistant", "content": "I cannot. " * (n + 1)}],
            }
            for n in range(count)
        ]
    )


def messages(count: int = 6) -> Dataset:
    """Two turns each."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"question {n}"},
                    {"role": "assistant", "content": "I cannot. " * (n + 1)},
                ]
                * 2
            }
            for n in range(count)
        ]
    )


def arguments(folder: Path, **settings: Any) -> SFTConfig:
    given = {
        "bf16": False,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return SFTConfig(str(folder), **{**given, **settings})


def trainer(kind: Any, args: SFTConfig, data: Dataset, **options: Any) -> Any:
    tokenizer = options.pop("tokenizer", None) or tiny_tokenizer()
    return kind(tiny_llama(), args, processing_class=tokenizer, train_dataset=data, **options)


def losses(made: Any) -> list[float]:
    made.train()
    return [float(entry["loss"]) for entry in made.state.log_history if "grad_norm" in entry]


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "completions": (prompts, {}, {}),
    "completions, all tokens": (prompts, {"completion_only_loss": False}, {}),
    "conversations, all tokens": (messages, {}, {}),
    "conversations, assistant only": (messages, {"assistant_only_loss": True}, {"tokenizer": True}),
    "accumulation": (prompts, {"gradient_accumulation_steps": 3}, {}),
    "truncated": (prompts, {"max_length": 40}, {}),
    "packed": (prompts, {"packing": True, "max_length": 120}, {}),
    "packed, cut": (
        prompts,
        {"packing": True, "max_length": 60, "packing_strategy": "bfd_split"},
        {},
    ),
    "wrapped": (prompts, {"packing": True, "max_length": 60, "packing_strategy": "wrapped"}, {}),
    "padding-free": (prompts, {"padding_free": True, "max_length": None}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_its_loss_without_a_pull_is_trls(name: str, tmp_path: Path) -> None:
    make, settings, options = CASES[name]
    found = []
    for kind, own in ((SFTTrainer, {}), (PactSFTTrainer, {"tokens": TOKENS, "pact": NO_PULL})):
        given = dict(own)
        if options:
            given["tokenizer"] = tiny_tokenizer(MARKED)
        found.append(losses(trainer(kind, arguments(tmp_path, **settings), make(), **given)))
    theirs, ours = found
    assert len(ours) == 2
    assert ours == pytest.approx(theirs, rel=STATES)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_pulls_at_the_steps_of_whole_answers(strategy: str, tmp_path: Path) -> None:
    """Every row has the step that it has in its answer, wherever a line cuts it."""
    args = arguments(tmp_path, packing=True, max_length=50, packing_strategy=strategy)
    made = trainer(PactSFTTrainer, args, prompts(), tokens=TOKENS)
    assert isinstance(made.data_collator.collator, TrlPackedCollator)
    whole = trainer(PactSFTTrainer, arguments(tmp_path), prompts(), tokens=TOKENS)
    pairs = []
    for each in (made, whole):
        batch = each.data_collator([each.train_dataset[n] for n in range(len(each.train_dataset))])
        pairs.append(
            list(zip(batch["row_target"].tolist(), batch["row_step"].tolist(), strict=True))
        )
    packed, expected = (sorted(each) for each in pairs)
    if strategy == "bfd":  # truncates
        assert 0 < len(packed) < len(expected) and set(packed) <= set(expected)
    else:  # a line's first token has no state before it
        missing = len(expected) - len(packed)
        assert 0 <= missing <= len(made.train_dataset)
        for pair in packed:
            expected.remove(pair)
    assert max(step for _, step in packed) > 20


def test_adapters_evaluation_and_a_model_by_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    args = arguments(tmp_path / "out", eval_strategy="steps", eval_steps=1, eval_packing=False)
    made = PactSFTTrainer(
        str(folder),
        args,
        tokens=TOKENS,
        train_dataset=prompts(),
        eval_dataset=prompts(3),
        peft_config=lora,
    )
    assert isinstance(made.reference, AdaptersOff)
    made.train()
    evaluated = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert all(entry["eval_kl"] >= -1e-6 and entry["eval_cross_entropy"] > 0 for entry in evaluated)
    fresh = made.evaluate(messages(2), metric_key_prefix="other")
    assert fresh["other_loss"] > 0
    made.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()


def test_the_pull_is_pact_trainers(tmp_path: Path) -> None:
    """On the same encoded examples, with a gate and another reference."""
    pact = PactConfig(over="selection")
    reference = FrozenModel(tiny_llama(seed=1))
    sft = trainer(
        PactSFTTrainer,
        arguments(tmp_path),
        prompts(),
        tokens=TOKENS,
        pact=pact,
        reference=reference,
    )
    data = sft.train_dataset.select_columns(["input_ids", "labels"])
    plain = PactTrainer(
        tiny_llama(),
        arguments(tmp_path),
        tokens=TOKENS,
        pact=pact,
        reference=reference,
        processing_class=tiny_tokenizer(),
        train_dataset=data,
    )
    assert losses(sft) == pytest.approx(losses(plain), rel=SUMS)
    assert isinstance(sft.data_collator.collator, Collator)


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"loss_type": "dft"}, {}, "loss_type='dft'"),
        ({"use_liger_kernel": True}, {}, "use_liger_kernel"),
        ({}, {"data_collator": len}, "collates by itself"),
        ({}, {"compute_loss_func": len}, "compute_loss_func"),
        ({}, {"processing_class": object()}, "must be a tokenizer"),
        (
            {"packing": True, "packing_strategy": "wrapped", "max_length": 50},
            {"pact": PactConfig(over="selection")},
            "a gate needs whole answers",
        ),
        (
            {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": 50},
            {},
            "leaves a data set unpacked",
        ),
        ({"packing": True, "max_length": None}, {}, "got None"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    settings: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given = {"processing_class": tiny_tokenizer(), "tokens": TOKENS, **options}
    with pytest.raises(ValueError, match=said):
        PactSFTTrainer(
            tiny_llama(), arguments(tmp_path, **settings), train_dataset=prompts(), **given
        )


def test_steps_and_sequences_of_an_example() -> None:
    labels = [-100, 5, 6, -100, -100, 7, 8]
    example = {"input_ids": list(range(7)), "labels": labels, "seq_lengths": [4, 3]}
    example |= with_steps(example)
    assert example["answer_steps"] == [0, 0, 1, 0, 0, 0, 1]
    first, second = split(example)
    assert first == {
        "input_ids": [0, 1, 2, 3],
        "labels": [-100, 5, 6, -100],
        "answer_steps": [0, 0, 1, 0],
    }
    assert second["labels"] == [-100, 7, 8]
    with pytest.raises(ValueError, match="add up to an example's tokens, got 8 for 7"):
        split({**example, "seq_lengths": [4, 4]})
    assert torch.equal(
        torch.tensor(split({"input_ids": [1], "labels": [1]})[0]["labels"]), torch.ones(1)
    )
