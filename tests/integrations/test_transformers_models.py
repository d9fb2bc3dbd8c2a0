"""`pact.patch`: the model's own forward, with the fused loss in place of its logits."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import pact
from pact.discovery import SafetyTokens
from pact.integrations.transformers_models import is_patched, last_loss
from pact.models import check_head, output_head
from pact.objective import PactConfig
from pact.reference import CachedReference, FrozenModel
from pact.training import PactTrainer
from pact.training.student import add_adapters
from tests.families import FAMILIES, VOCABULARY, tiny
from tests.objectives import matching
from tests.rounding import STATES, SUMS
from tests.tiny import tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, largest_error, problem

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)
LENGTH = 9


def batch(lines: int = 2, length: int = LENGTH, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """Random tokens; a prompt of 4, and a gap within the second answer."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (lines, length), generator=g)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1:, 6] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By parameter; of those that the loss depends on."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names, parameters = zip(*trained, strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def assert_same(model: Any, **given: Any) -> Any:
    """Loss and gradients of the forward before and after, in training mode."""
    model.train()
    own = model(**given)
    expected = gradients(model, own.loss)
    pact.patch(model)
    out = model(**given)
    assert out.logits is None
    torch.testing.assert_close(out.loss, own.loss, rtol=SUMS, atol=SUMS)
    assert largest_error(gradients(model, out.loss), expected) < STATES
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_loss_and_gradients(family: str) -> None:
    model = tiny(family)
    check_head(model)
    own_name, signature = type(model).__name__, inspect.signature(type(model).forward)
    out = assert_same(model, **batch())
    assert type(model).__name__ == own_name
    parameters = inspect.signature(type(model).forward).parameters  # trainers read them
    assert [*parameters] == [
        *(name for name in signature.parameters if name != "kwargs"),
        "num_items_in_batch",
        "kwargs",
    ]
    if "experts" in family or family == "gpt-oss":
        assert float(out.aux_loss) > 0  # and in the loss, which is the model's own
    logits = model(batch()["input_ids"]).logits
    assert logits.shape[-1] == VOCABULARY  # without labels nothing changes
    pact.unpatch(model)
    assert not is_patched(model) and model(**batch()).logits is not None


def test_arguments_mean_what_they_mean_to_the_model() -> None:
    given = batch()
    shifted = nn.functional.pad(given["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    assert_same(tiny("gemma 2"), **given, num_items_in_batch=torch.tensor(31))
    assert_same(tiny("llama"), **given, num_items_in_batch=31)
    assert_same(tiny("llama"), **given, shift_labels=shifted, num_items_in_batch=7)
    model = tiny("llama")
    assert_same(
        model,
        input_ids=None,
        labels=given["labels"],
        inputs_embeds=model.get_input_embeddings()(given["input_ids"]).detach(),
    )
    assert_same(tiny("llama"), **given, output_hidden_states=True)
    model = tiny("llama")
    (own, *_), more = model(**given, return_dict=False), model.config
    found = pact.patch(model)(
        given["input_ids"], given["attention_mask"], labels=given["labels"], return_dict=False
    )
    torch.testing.assert_close(found[0], own, rtol=SUMS, atol=SUMS)
    assert more.architectures == model.config.architectures


EVEN = torch.arange(LENGTH).expand(2, -1) % 2 == 0
KEPT = {
    "the last": (5, lambda x: x[:, -5:]),
    "chosen": (torch.tensor([0, 3, 4, 7]), lambda x: x[:, [0, 3, 4, 7]]),
    "by line": (
        torch.tensor([[7, 3], [4, 5]]),
        lambda x: torch.stack([x[0, [7, 3]], x[1, [4, 5]]]),
    ),
    "by a mask": (EVEN, lambda x: x[EVEN]),
}


@pytest.mark.parametrize("name", KEPT)
def test_logits_to_keep(name: str) -> None:
    """The rows of the positions that are kept, whose labels are the next tokens'."""
    kept, choose = KEPT[name]
    given, model = batch(), tiny("llama")
    logits = model(given["input_ids"], given["attention_mask"], logits_to_keep=kept).logits
    shifted = nn.functional.pad(given["labels"], (0, 1), value=-100)[:, 1:]
    chosen = choose(shifted)
    expected = nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), chosen.flatten())
    pact.patch(model)
    for shift in ({}, {"shift_labels": shifted}, {"shift_labels": chosen}):
        out = model(**given, logits_to_keep=kept, **shift)
        torch.testing.assert_close(out.loss, expected, rtol=SUMS, atol=SUMS)
    with pytest.raises(ValueError, match="labels must be of the positions"):
        model(**given, logits_to_keep=kept, shift_labels=shifted[:, :1])


def test_gradient_checkpointing_and_adapters() -> None:
    model = tiny("llama")
    model.gradient_checkpointing_enable()
    assert_same(model, **batch())
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    for first in (True, False):  # patched below adapters, or with them on
        model, plain = tiny("llama"), get_peft_model(tiny("llama"), lora)
        model = pact.patch(model) if first else model
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora)
        adapted = adapted if first else pact.patch(adapted)
        plain.load_state_dict(adapted.state_dict())
        expected = plain(**batch())
        out = adapted(**batch())
        assert out.logits is None
        torch.testing.assert_close(out.loss, expected.loss, rtol=SUMS, atol=SUMS)


def test_autocast() -> None:
    """Products in bfloat16, whose roundings are of 2^-9."""
    model = tiny("llama")
    with torch.autocast("cpu", torch.bfloat16):
        own = model(**batch()).loss
        out = pact.patch(model)(**batch()).loss
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, own.float(), rtol=2**-7, atol=0.0)


def test_a_copy_is_patched_and_stands_alone(tmp_path: Path) -> None:
    model = pact.patch(tiny("llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    uniform = torch.tensor(float(VOCABULARY)).log()
    torch.testing.assert_close(other(**batch()).loss, uniform)
    assert float(model(**batch()).loss) > 4
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not is_patched(loaded)
    torch.testing.assert_close(loaded(**batch()).loss, model(**batch()).loss)


@pytest.mark.parametrize("adapters", [True, False], ids=["adapters off", "a copy"])
def test_with_safety_tokens_it_is_pact(adapters: bool) -> None:
    """The loss of `PactTrainer` on the same examples, adapters or weights moved off the start."""
    from pact.training.student import batch_loss

    config = matching("vocabulary", gate=False)
    given = problem(config, count=4)
    collated = given.collator([given.dataset[n] for n in range(4)])
    model: Any = tiny_llama()
    if adapters:
        model = add_adapters(model)
    pact.patch(model, tokens=TOKENS, pact=config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    reference = model.get_base_model()._pact.reference if adapters else model._pact.reference
    expected = batch_loss(model, given.objective, reference, collated)
    out = model(**{name: collated[name] for name in ("input_ids", "attention_mask", "labels")})
    torch.testing.assert_close(out.loss, expected.loss, rtol=SUMS, atol=SUMS)
    found = last_loss(model)
    assert found is not None and float(found.kl) > 1e-3 and int(found.num_rows) > 0
    torch.testing.assert_close(found.kl, expected.kl, rtol=SUMS, atol=SUMS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (
        dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        for loss in (out.loss, expected.loss)
    )
    assert largest_error(ours, theirs) < STATES


def test_steps_count_from_each_sequences_start() -> None:
    """In a packed line without a prompt between two answers, `position_ids` tell them apart."""
    config = PactConfig(gate=False, positive_only=False)  # the KL's weight falls with the step
    model = pact.patch(
        tiny_llama(), tokens=TOKENS, pact=config, reference=FrozenModel(tiny_llama(seed=1))
    )
    ids = batch(1, 8, 320)["input_ids"]
    apart = torch.cat([ids[:, :4], ids[:, 4:]])
    one = model(apart, labels=apart)
    kl = last_loss(model).kl  # type: ignore[union-attr]
    labels = ids.clone()
    labels[:, [0, 4]] = -100
    packed = model(ids, labels=labels, position_ids=torch.arange(8)[None] % 4, use_cache=False)
    torch.testing.assert_close(packed.loss, one.loss, rtol=STATES, atol=0.0)
    torch.testing.assert_close(last_loss(model).kl, kl, rtol=STATES, atol=0.0)  # type: ignore[union-attr]


def test_trainer_trains_what_pact_trainer_trains(tmp_path: Path) -> None:
    """transformers' own Trainer, with accumulation, whose denominator is the step's."""
    config = matching("vocabulary", gate=False)
    given = problem(config, count=12)
    columns = given.dataset.select_columns(["input_ids", "labels"])

    def arguments() -> TrainingArguments:
        return TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )

    def collate(examples: list[Any]) -> dict[str, Tensor]:
        made = given.collator(examples)
        return {name: made[name] for name in ("input_ids", "attention_mask", "labels")}

    reference = FrozenModel(tiny_llama(seed=1))
    patched = pact.patch(tiny_llama(), tokens=TOKENS, pact=config, reference=reference)
    theirs = Trainer(patched, arguments(), train_dataset=columns, data_collator=collate)
    theirs.train()
    ours = PactTrainer(
        tiny_llama(),
        arguments(),
        objective=given.objective,
        reference=reference,
        data_collator=given.collator,
        train_dataset=columns,
    )
    ours.train()
    losses = [
        [float(entry["loss"]) for entry in trainer.state.log_history if "grad_norm" in entry]
        for trainer in (theirs, ours)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=STATES)
    assert len(losses[0]) == 2


def test_what_cannot_be_honoured_is_refused() -> None:
    model = tiny_llama()
    for options, said in (
        ({"tokens": TOKENS, "pact": PactConfig(over="selection")}, "a gate needs post-only"),
        ({"tokens": TOKENS, "pact": PactConfig(anchors_only=True)}, "say which rows are anchors"),
        ({"pact": PactConfig()}, "got no tokens"),
        ({"tokens": SafetyTokens(torch.tensor([320]), torch.ones(1))}, "below the model's vocab"),
        (
            {"tokens": TOKENS, "reference": CachedReference.__new__(CachedReference)},
            "AdaptersOff or FrozenModel",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            pact.patch(model, **options)
        assert not is_patched(model)
    pact.patch(model)
    with pytest.raises(ValueError, match="patched already"):
        pact.patch(model)
    pact.unpatch(pact.unpatch(model))
    with pytest.raises(ValueError, match="not patched"):
        last_loss(model)


def test_a_model_that_forms_its_own_loss_is_refused_by_name() -> None:
    class Own(type(tiny("llama"))):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            out = super().forward(input_ids, **kwargs)
            if labels is not None:
                out.loss = out.logits.float().sum()
            return out

    model = tiny("llama")
    model.__class__ = Own
    pact.patch(model)
    with pytest.raises(ValueError, match="Own forms its loss without its loss_function"):
        model(**{name: batch()[name] for name in ("input_ids", "labels")})
    assert output_head(model).weight.shape[0] == VOCABULARY
    assert model(batch()["input_ids"]).logits.shape[-1] == VOCABULARY  # all is put back


def test_the_output_has_no_logits_by_any_name() -> None:
    out = pact.patch(tiny_llama())(**batch(vocabulary=320))
    assert "logits" not in out and [*out.keys()][0] == "loss"
    assert out.logits is None and copy.copy(out).logits is None
    assert all(value.numel() for value in out.to_tuple() if isinstance(value, Tensor))


def test_a_forward_that_another_library_put_there() -> None:
    """Before the patch it would run in its place; after it, it wraps the patched one."""
    model = tiny_llama()
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    with pytest.raises(ValueError, match="a forward that another library put on it"):
        pact.patch(model)
    remove_hook_from_module(model)
    plain = float(model(**batch(vocabulary=320)).loss)
    pact.patch(model)
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    out = model(**batch(vocabulary=320))
    assert out.logits is None and float(out.loss) == pytest.approx(plain, rel=SUMS)
    with pytest.raises(ValueError, match="take its hooks off first"):
        pact.unpatch(model)
    remove_hook_from_module(model)
    assert not is_patched(pact.unpatch(model))
    with pytest.raises(ValueError, match="patch it first, then call torch.compile"):
        pact.patch(torch.compile(tiny_llama()))
    own = tiny_llama()
    own.loss_function = lambda *args, **kwargs: torch.tensor(7.0)
    with pytest.raises(ValueError, match="has a loss_function of its own"):
        pact.patch(own)


def test_a_reference_is_given_what_is_its_own() -> None:
    """Neither the student's keys and values nor its embeddings."""
    model = tiny_llama()
    pact.patch(model, tokens=TOKENS, pact=PactConfig(gate=False))
    given = batch(vocabulary=320)
    past = model(given["input_ids"][:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="needs whole sequences, got past_key_values"):
        model(given["input_ids"][:, 4:], past_key_values=past, labels=given["labels"][:, 4:])
    states = model.get_input_embeddings()(given["input_ids"])
    with pytest.raises(ValueError, match="embeds the tokens itself, got inputs_embeds"):
        model(inputs_embeds=states, labels=given["labels"])


def test_a_patched_model_is_saved_whole_and_its_class_makes_plain_ones(tmp_path: Path) -> None:
    model, given = pact.patch(tiny_llama()), batch(vocabulary=320)
    loss = float(model(**given).loss)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert is_patched(loaded) and float(loaded(**given).loss) == loss
    one = torch.tensor([int((given["labels"][:, 1:] != -100).sum())])
    assert float(model(**given, num_items_in_batch=one).loss) == pytest.approx(loss, rel=SUMS)
    model.save_pretrained(tmp_path / "model")
    plain = type(model).from_pretrained(tmp_path / "model")
    assert not is_patched(plain) and plain(**given).logits is not None
