"""The key changes with everything that affects the values, and with nothing else."""

from __future__ import annotations

import torch

from pact.objective import PactObjective
from pact.reference import AdaptersOff, FrozenModel, cache_key
from tests.objectives import matching
from tests.reference.problem import adapted, problem
from tests.tiny import tiny_llama
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS


def key(reference=None, dataset=None, objective=None, header=None, **options):
    p = problem()
    return cache_key(
        p.dataset if dataset is None else dataset,
        reference or FrozenModel(tiny_llama(seed=1)),
        objective or p.objective,
        p.collator.header_ids if header is None else header,
        **options,
    )


def changed(model, name, *, index=0):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[index] += 1e-3
    return model


def objective(ids=TOKEN_IDS, weights=TOKEN_WEIGHTS, **options):
    return PactObjective(ids, weights, matching(**options))


def relabelled(dataset, name):
    """Another last token or label in one example."""
    examples = [dict(example) for example in dataset]
    examples[3][name] = [*examples[3][name][:-1], examples[3][name][-1] + 1]
    return examples


def test_every_cause_of_other_values_has_a_key_of_its_own():
    dataset, header = problem().dataset, list(problem().collator.header_ids)
    scaled = tiny_llama(seed=1)
    scaled.config.rms_norm_eps *= 2
    keys = {
        "as it is": key(),
        "first weight": key(FrozenModel(changed(tiny_llama(seed=1), "lm_head.weight"))),
        "last weight": key(FrozenModel(changed(tiny_llama(seed=1), "model.norm.weight", index=-1))),
        "precision of the weights": key(FrozenModel(tiny_llama(seed=1).bfloat16())),
        "config": key(FrozenModel(scaled)),
        "other ids": key(dataset=relabelled(dataset, "input_ids")),
        "other labels": key(dataset=relabelled(dataset, "labels")),
        "fewer examples": key(dataset=dataset.select(range(5))),
        "another order": key(dataset=dataset.select([1, 0, *range(2, len(dataset))])),
        "header": key(header=[*header, 5]),
        "fewer tokens": key(objective=objective(TOKEN_IDS[:-1], TOKEN_WEIGHTS[:-1])),
        "tokens in another order": key(objective=objective(TOKEN_IDS.flip(0))),
        "no gate": key(objective=objective(gate=False)),
        "over": key(objective=objective(over="vocabulary")),
        "positive only": key(objective=objective(positive_only=True)),
        "dtype": key(dtype="fp32"),
        "autocast": key(compute_dtype="bf16"),
    }
    by_key: dict[str, list[str]] = {}
    for cause, name in keys.items():
        by_key.setdefault(name, []).append(cause)
    assert [causes for causes in by_key.values() if len(causes) > 1] == []


def test_what_does_not_reach_the_values_leaves_the_key():
    dataset = problem().dataset
    moved = tiny_llama(seed=1)
    moved.config._name_or_path = "/elsewhere"
    moved.config.use_cache = False
    expected = key()
    assert key(FrozenModel(moved)) == expected
    assert key(dataset=list(dataset)) == expected
    assert key(dataset=dataset.add_column("example", list(range(len(dataset))))) == expected
    assert key(objective=objective(weights=TOKEN_WEIGHTS * 2)) == expected
    assert key(objective=objective(kl_weight=3.0, gate_alpha=1.0)) == expected
    raised, plain = (objective(over="vocabulary", kl_margin=nats) for nats in (1.5, 0.0))
    assert key(objective=raised) == key(objective=plain)
    positive = TOKEN_WEIGHTS > 0
    chosen = objective(TOKEN_IDS[positive], TOKEN_WEIGHTS[positive])
    assert key(objective=objective(positive_only=True)) == key(objective=chosen)
    without_gate = objective(gate=False)
    assert key(objective=without_gate, header=()) == key(objective=without_gate)


def test_a_student_s_adapters_do_not_count_its_other_weights_do():
    model = adapted(tiny_llama(seed=1))
    reference = AdaptersOff(model)
    fresh = key(reference)
    assert fresh == key()  # that of the model before it had adapters
    name = next(name for name, _ in model.named_parameters() if "lora_B" in name)
    assert key(AdaptersOff(changed(model, name))) == fresh
    frozen = next(name for name, _ in model.named_parameters() if "q_proj.base_layer" in name)
    assert key(AdaptersOff(changed(model, frozen))) != fresh


def test_training_steps_and_runs_of_the_reference_leave_the_key():
    p = problem()
    model = adapted(tiny_llama(seed=1))
    reference = AdaptersOff(model.train())
    before = key(reference)
    model(**{"input_ids": p.batch(0)["input_ids"]}).logits.sum().backward()
    torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=0.1).step()
    reference(p.batch(0, 1))
    assert key(reference) == before


def test_adapters_of_a_frozen_model_count_with_their_scale():
    plain = key()
    model = adapted(tiny_llama(seed=1), scale=1.0)
    with_adapters = key(FrozenModel(model))
    assert with_adapters != plain
    model.peft_config["default"].lora_alpha *= 2
    assert key(FrozenModel(model)) not in (plain, with_adapters)
