"""`PactTrainer` refuses what `fit` refuses, and its evaluation weighs rows alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from pact.data.anchors import with_anchors
from pact.data.collate import Collator, pad_id
from pact.discovery import SafetyTokens
from pact.models.loading import load_tokenizer
from pact.objective import PactConfig, PactObjective
from pact.training import PactTrainer
from pact.training.config import FitConfig
from pact.training.finite import Watch
from pact.training.student import batch_loss
from tests.rounding import SUMS
from tests.tiny import CHATML, tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, Problem, problem

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return TrainingArguments(str(folder), **(quiet | {"max_steps": 1} | settings))


def trainer(given: Problem, folder: Path, model: Any = None, **options: Any) -> PactTrainer:
    settings = options.pop("settings", {})
    options = {"train_dataset": given.dataset, "data_collator": given.collator, **options}
    return PactTrainer(
        tiny_llama() if model is None else model,
        arguments(folder, **settings),
        objective=given.objective,
        **options,
    )


class Wrapped(nn.Linear):
    """A head that is more than its matrix says."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(hidden)


def more_than_a_matrix() -> Any:
    model = tiny_llama()
    head = Wrapped(32, 320, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


def lora(**options: Any) -> Any:
    return get_peft_model(
        tiny_llama(tied=options.pop("tied", False)),
        LoraConfig(**{"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"], **options}),
    )


def merged() -> Any:
    model = lora(init_lora_weights=False)
    model.merge_adapter()
    return model


REFUSED = {
    "a head that is more than a matrix": (more_than_a_matrix, "its head does what its config"),
    "a frozen model": (
        lambda: tiny_llama().requires_grad_(False),
        "at least one parameter must be trainable, got none",
    ),
    "16 bits": (lambda: tiny_llama().bfloat16(), "must be float32, got torch.bfloat16"),
    "a tied embedding": (
        lambda: lora(tied=True, target_modules=["embed_tokens"]),
        "adapters on the embeddings need embeddings of their own",
    ),
    "merged adapters": (merged, "must be apart from .* got 'default' merged into .*q_proj"),
    "a head under DoRA": (
        lambda: lora(target_modules=["lm_head"], use_dora=True),
        "must be LoRA's B A alone",
    ),
    "a head trained by a copy": (
        lambda: lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "got peft.*, an adapter's",
    ),
    "no language model": (lambda: nn.Linear(3, 3), "must be a causal language model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_loops_refuse_a_student(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    given = problem(None)
    with pytest.raises(ValueError, match=message):
        given.fit(make(), FitConfig(max_steps=1))
    with pytest.raises(ValueError, match=message):
        trainer(given, tmp_path, make())


def test_a_base_that_pissa_changed_is_refused_as_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FrozenModel with a copy made before"):
        trainer(problem(PactConfig()), tmp_path, lora(init_lora_weights="pissa"))


def test_safety_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    given = problem(None)
    other = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS, metadata={"tokenizer_size": "50257"})
    with pytest.raises(ValueError, match="tokens were found with the tokenizer of .* differs"):
        PactTrainer(
            tiny_llama(),
            arguments(tmp_path),
            tokens=other,
            processing_class=tiny_tokenizer(),
            train_dataset=given.dataset,
        )
    beyond = PactObjective(torch.tensor([5, 999]), torch.ones(2), PactConfig())
    with pytest.raises(ValueError, match="below the model's vocabulary of 320, got 999"):
        trainer(given._replace(objective=beyond), tmp_path)


def test_token_ids_beyond_the_models_are_refused(tmp_path: Path) -> None:
    given = problem(None)
    with pytest.raises(ValueError, match=r"below the model's vocabulary of 200, got \d+"):
        trainer(given, tmp_path, tiny_llama(vocab_size=200)).train()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": [["Hi"]]}, r"train_dataset must have the columns .*got \['messages'\]"),
        ({"input_ids": [[1, 2]]}, r"got \['input_ids'\]: encode conversations"),
    ],
)
def test_data_without_labels_are_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(problem(None), tmp_path, train_dataset=Dataset.from_dict(columns))
    with pytest.raises(ValueError, match=r"eval_dataset\['a'\] must have"):
        trainer(problem(None), tmp_path, eval_dataset={"a": Dataset.from_dict(columns)})
    with pytest.raises(ValueError, match="must have input_ids and labels, got .* without labels"):
        problem(None).collator([{"input_ids": [1, 2]}])


def test_labels_that_are_all_masked_are_refused(tmp_path: Path) -> None:
    given = problem(None)
    silent = given.dataset.map(lambda row: {"labels": [-100] * len(row["labels"])})
    made = trainer(given, tmp_path, train_dataset=silent, eval_dataset=silent)
    with pytest.raises(ValueError, match="got none in the first: every label is -100"):
        made.train()
    with pytest.raises(ValueError, match="an evaluation needs answer tokens to predict, got none"):
        made.evaluate()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_in_the_data_is_hidden_by_its_mask(side: str, tmp_path: Path) -> None:
    """The same loss as of the examples without padding, wherever it is."""
    given = problem(PactConfig(over="selection"))
    longest = max(len(ids) for ids in given.dataset["input_ids"])

    def padded(row: dict[str, Any]) -> dict[str, Any]:
        more = longest - len(row["input_ids"])
        values = {"input_ids": 7, "labels": -100, "attention_mask": 0}
        row = {**row, "attention_mask": [1] * len(row["input_ids"])}
        fill = {name: [value] * more for name, value in values.items()}
        return {n: fill[n] + row[n] if side == "left" else row[n] + fill[n] for n in values}

    data = given.dataset.map(padded)
    losses = [
        trainer(
            given, tmp_path, eval_dataset=each, reference=given.reference(tiny_llama(seed=1))
        ).evaluate()["eval_loss"]
        for each in (data, given.dataset)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=SUMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": [1, 0, 1, 1]}, "ones on its tokens and zeros on padding at its ends"),
        ({"attention_mask": [1, 1, 1]}, "got 3 ones of 3 for 4 ids"),
        ({"attention_mask": [0, 1, 1, 1]}, "padding must not be labelled"),
        ({"position_ids": [0, 1, 0, 1]}, "must be one sequence, whose position_ids count from 0"),
    ],
)
def test_masks_and_positions_that_cannot_be_followed(change: Any, message: str) -> None:
    example = {"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}
    with pytest.raises(ValueError, match=message):
        Collator((), 0, post_only=False)([{**example, **change}])


@pytest.mark.parametrize("batch_size", [1, 4, 21])
def test_an_evaluations_loss_does_not_depend_on_the_batch_size(
    batch_size: int, tmp_path: Path
) -> None:
    given = problem(PactConfig(over="selection"), count=21)
    reference, model = given.reference(tiny_llama(seed=1)), tiny_llama()
    batch = given.collator(list(given.dataset))
    with torch.no_grad():
        expected = batch_loss(model, given.objective, reference, batch)
    settings = {"per_device_eval_batch_size": batch_size}
    made = trainer(
        given, tmp_path, model, eval_dataset=given.dataset, reference=reference, settings=settings
    )
    metrics = made.evaluate()
    for name, value in (
        ("loss", expected.loss),
        ("cross_entropy", expected.cross_entropy),
        ("kl", expected.kl),
        ("gate", expected.mean_gate),
    ):
        assert metrics[f"eval_{name}"] == pytest.approx(float(value), rel=SUMS), name
    test = made.predict(given.dataset).metrics
    assert test["test_loss"] == pytest.approx(float(expected.loss), rel=SUMS)
    several = made.evaluate({"a": given.dataset, "b": given.dataset.select(range(3))})
    assert several["eval_a_loss"] == pytest.approx(float(expected.loss), rel=SUMS)
    assert several["eval_b_loss"] != several["eval_a_loss"]


def test_a_collator_without_rows_is_refused(tmp_path: Path) -> None:
    given = problem(None)
    made = trainer(given, tmp_path, data_collator=lambda examples: {"input_ids": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="data_collator must make answer rows, as pact.data.coll"):
        made.train()


@pytest.mark.parametrize("settings", [{"logging_steps": 1}, {"logging_steps": 500}])
def test_what_is_not_finite_is_neither_logged_as_0_nor_saved(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    given, model = problem(None), tiny_llama()
    made = trainer(
        given,
        tmp_path,
        model,
        settings={**settings, "max_steps": 6, "save_strategy": "steps", "save_steps": 2},
    )
    step = made.training_step

    def spoiled(*args: Any, **kwargs: Any) -> torch.Tensor:
        if made.state.global_step == 2:  # the weights of step 3 on
            model.lm_head.weight.detach()[5] = torch.nan
        return step(*args, **kwargs)

    made.training_step = spoiled
    with pytest.raises(ValueError, match="must be finite, got nan in step 3.*checkpoint-2"):
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(ValueError, match="must be finite"):
        made.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
    assert all(entry.get("loss") != 0.0 for entry in made.state.log_history)


def test_a_step_that_fp16_leaves_out_does_not_end_the_run(tmp_path: Path) -> None:
    """Its scaler starts too high on purpose: the first gradients overflow, and are not used."""
    made = trainer(problem(None), tmp_path)
    made._watch = Watch(made.args.device)  # training has begun
    made.state.global_step = 1
    made.args.fp16 = True
    made.log({"loss": 2.0, "grad_norm": float("inf")})
    made.state.global_step = 2
    made.args.fp16 = False
    with pytest.raises(ValueError, match="gradient's norm must be finite, got inf in step 2"):
        made.log({"loss": 2.0, "grad_norm": float("inf")})


def test_batches_are_not_dispatched_apart(tmp_path: Path) -> None:
    from pact.training.trainer_settings import check_batches

    class Two:
        world_size = 2
        accelerator_config = arguments(tmp_path).accelerator_config

    check_batches(Two, is_iterable=False)
    with pytest.raises(ValueError, match="cannot be dispatched .* got dispatch_batches=None"):
        check_batches(Two, is_iterable=True)


def test_anchors_are_not_drawn_by_length(tmp_path: Path) -> None:
    from pact.training.trainer_settings import check_sampling

    by_length = arguments(tmp_path, train_sampling_strategy="group_by_length")
    one = {"input_ids": [1, 2], "labels": [1, 2]}
    for none in ([one], Dataset.from_list([{**one, "anchor": False}])):
        check_sampling(by_length, none)
    for some in ([one, {**one, "anchor": True}], Dataset.from_list([{**one, "anchor": True}])):
        check_sampling(arguments(tmp_path), some)
        with pytest.raises(ValueError, match="would come in steps of their own: leave it 'random'"):
            check_sampling(by_length, some)
    given = problem(None)
    held = given.dataset.select(range(2))
    given = given._replace(dataset=with_anchors(given.dataset, held, 0.5, steps=3, seed=0))
    with pytest.raises(ValueError, match="PactTrainer cannot honour train_sampling_strategy"):
        trainer(given, tmp_path, settings={"train_sampling_strategy": "group_by_length"})


def test_a_student_that_is_not_wrapped_in_several_processes_is_refused(tmp_path: Path) -> None:
    """As Trainer leaves it after an evaluation before training: its gradients are not reduced."""
    given = problem(None)
    made = trainer(given, tmp_path)
    batch = given.collator(list(given.dataset)[:2])

    class Two:
        world_size = 2

    assert torch.isfinite(made.compute_loss(made.model, batch, num_items_in_batch=9))
    made.args = Two()
    with pytest.raises(ValueError, match="gradients must be reduced.*set eval_on_start=True"):
        made.compute_loss(made.model, batch, num_items_in_batch=9)


def test_several_processes_that_were_not_joined_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="must be joined, got SLURM_STEP_NUM_TASKS=2"):
        trainer(problem(None), tmp_path)


def test_variables_of_the_template_stay_with_the_tokenizer(tmp_path: Path) -> None:
    given = problem(None)
    tokenizer = tiny_tokenizer("{% if loud is defined %}{{ loud }}{% endif %}" + CHATML)
    options = {"chat_template_kwargs": {"loud": "LOUD"}, "processing_class": tokenizer}
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    made = trainer(given, tmp_path, model, **options)
    made.save_model(str(tmp_path / "saved"))
    kept = load_tokenizer(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 2  # <|im_end|>
    turns = [{"role": "user", "content": "Hi"}]
    assert kept.apply_chat_template(turns, tokenize=False).startswith("LOUD")
    assert not tokenizer.apply_chat_template(turns, tokenize=False).startswith("LOUD")
    with pytest.raises(ValueError, match="got no tokenizer: give it as processing_class"):
        trainer(given, tmp_path, chat_template_kwargs={"loud": "LOUD"})


def test_a_tokenizer_with_neither_pad_nor_end_pads_all_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert pad_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0
    given = problem(PactConfig(over="selection"))
    made = PactTrainer(
        tiny_llama(),
        arguments(tmp_path),
        tokens=TOKENS,
        processing_class=tokenizer,
        train_dataset=given.dataset,
    )
    made.train()
