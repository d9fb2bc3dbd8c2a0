from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pact.evaluation.judges.registry import make_judge
from pact.evaluation.judges.verdict import JudgeOptions, Verdict
from tests.tiny import SENTENCES, tiny_llama, tiny_tokenizer

LABELS = {0: "normal", 1: "refusal", 2: "other"}


@pytest.fixture
def classifier(tmp_path: Path) -> LlamaForSequenceClassification:
    values = tiny_llama().config.to_dict() | {"id2label": LABELS, "pad_token_id": None}
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**values)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return model


def test_verdicts_are_the_label_of_each_answer_alone(
    classifier: LlamaForSequenceClassification, tmp_path: Path
) -> None:
    answers = [*SENTENCES, "no", "I won't", "yes, of course", "x", "hello " * 300]
    tokenizer = tiny_tokenizer()
    labels = []
    for answer in answers:  # one by one, so that nothing is padded
        ids = tokenizer(answer, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
        labels.append(LABELS[int(classifier(input_ids=ids).logits.argmax())])
    assert len(set(labels)) > 1  # or the test would say nothing
    options = JudgeOptions(refusal_label=labels[0], batch_size=3, progress=False)
    verdicts = make_judge(f"classifier:{tmp_path}", options)([], answers)
    assert verdicts == [Verdict(label == labels[0], label == labels[0]) for label in labels]


@pytest.mark.usefixtures("classifier")
@pytest.mark.parametrize("label", [None, "REFUSAL"])
def test_the_refusal_label_must_be_one_of_the_labels(tmp_path: Path, label: str | None) -> None:
    with pytest.raises(ValueError, match=r"labels \['normal', 'other', 'refusal'\], got"):
        make_judge(f"classifier:{tmp_path}", JudgeOptions(refusal_label=label))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classifier:PATH, got '.*' without config.json"):
        make_judge(f"classifier:{tmp_path}", JudgeOptions(refusal_label="refusal"))


def test_one_label_is_no_choice(tmp_path: Path) -> None:
    LlamaConfig(id2label={0: "score"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="at least two labels, got 1"):
        make_judge(f"classifier:{tmp_path}", JudgeOptions(refusal_label="score"))
