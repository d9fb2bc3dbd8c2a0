"""Damaged files of models and tokenizers end in one ValueError that says which."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pact.models.loading import load_model, load_tokenizer
from tests.models.test_loading import save_adapters
from tests.tiny import save_tiny, tiny_llama

NESTED = "[" * 100_000
Damage = Callable[[Path], object]


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def binary(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def half(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def settings(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return change


class _Code:
    """What a pickle runs when it is read by those who read all."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("it-ran"),)


def as_pickle(content: bytes | None = None) -> Damage:
    """The weights as a pickle: cut in half, or other content."""

    def change(folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        torch.save(load_file(folder / "model.safetensors"), path)
        (folder / "model.safetensors").unlink()
        path.write_bytes(path.read_bytes()[:2000] if content is None else content)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gone("config.json"), "must hold config.json, and does not"),
        (text("config.json", "{"), "config.json must hold a JSON object, got what is no JSON"),
        (text("config.json", ""), "config.json must hold a JSON object, got what is no JSON"),
        (text("config.json", "[]"), "config.json must hold a JSON object, got a list"),
        (text("config.json", NESTED), "config.json must hold .* got values nested too deeply"),
        (binary("config.json", b"\xff\xfe\x00"), "config.json must hold .* can't decode byte"),
        (settings("config.json", model_type="none"), "model .* cannot be loaded .*type `none`"),
        (settings("config.json", hidden_size="big"), "cannot be loaded .*'hidden_size'"),
        (settings("config.json", hidden_size=-32), "cannot be loaded .*negative dimension"),
        (settings("config.json", vocab_size=10**15), "cannot be loaded .*allocate"),
        (text("generation_config.json", "{"), "generation_config.json must hold a JSON object"),
        (text("generation_config.json", NESTED), "generation_config.json .* nested too deeply"),
        (settings("generation_config.json", eos_token_id="x"), "a token id, or several, got 'x'"),
        (gone("model.safetensors"), "model .* cannot be loaded .*no file named"),
        (half("model.safetensors"), "model.safetensors must be a whole safetensors file"),
        (text("model.safetensors", ""), "whole safetensors file, .*header too small"),
        (text("model.safetensors", "no weights at all"), "must be a whole safetensors file"),
        (binary("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), "header too large"),
        (as_pickle(), "model .* cannot be loaded"),
        (as_pickle(pickle.dumps(_Code())), "cannot be loaded .*more than tensors"),
    ],
)
def test_damaged_models(
    damage: Damage, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(save_tiny(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")
    assert not (tmp_path / "it-ran").exists()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gone("model-00002-of-00007.safetensors"), f"{INDEX} names model-00002-of-00007.* not the"),
        (half("model-00002-of-00007.safetensors"), "model-00002-of-00007.* must be a whole safet"),
        (text(INDEX, "{"), f"{INDEX} must hold a JSON object"),
        (text(INDEX, NESTED), "nested too deeply"),
        (text(INDEX, '{"metadata": {}}'), "must map weights to files in weight_map"),
        (text(INDEX, '{"weight_map": {"a": 1}}'), "must map weights to files in weight_map"),
        (text(INDEX, '{"weight_map": {"a": "../b"}}'), r"files of its folder, got '\.\./b'"),
        (text(INDEX, '{"weight_map": {"a": "/etc/passwd"}}'), "files of its folder, got '/etc"),
    ],
)
def test_damaged_shards(damage: Damage, message: str, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 7
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_files_that_are_not_used_do_not_matter(tmp_path: Path) -> None:
    """One file of weights goes before an index, and before other files beside it."""
    folder = save_tiny(tmp_path / "model")
    (folder / INDEX).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    (folder / "consolidated.safetensors").write_text("cut")
    torch.testing.assert_close(
        load_model(folder)(torch.arange(5)[None]).logits, tiny_llama()(torch.arange(5)[None]).logits
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gone("tokenizer.json"), "the tokenizer of .* cannot be loaded"),
        (half("tokenizer.json"), "the tokenizer of .* cannot be loaded .*JSONDecodeError"),
        (text("tokenizer.json", "[]"), "the tokenizer of .* cannot be loaded"),
        (text("tokenizer.json", NESTED), "cannot be loaded .*nested too deeply"),
        (settings("tokenizer.json", model={"type": "None"}), "cannot be loaded"),
        (text("tokenizer_config.json", "{"), "tokenizer_config.json must hold a JSON object"),
        (text("tokenizer_config.json", "[]"), "tokenizer_config.json .* got a list"),
        (text("tokenizer_config.json", NESTED), "tokenizer_config.json .* nested too deeply"),
        (settings("tokenizer_config.json", pad_token=7), "the tokenizer of .* pad_token"),
        (settings("tokenizer_config.json", tokenizer_class=["a"]), "the tokenizer of .* cannot"),
        (text("special_tokens_map.json", "{"), "special_tokens_map.json must hold"),
        (binary("chat_template.jinja", b"\xff\xfe\x00"), "the tokenizer of .* can't decode"),
        (
            text("chat_template.jinja", "a\n{% for m in %}"),
            "the chat template of .* must be a Jinja template, got line 2: ",
        ),
        (
            text("chat_template.jinja", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"),
            "the chat template of .* must be a Jinja template, got .*recursion",
        ),
    ],
)
def test_damaged_tokenizers(damage: Damage, message: str, tmp_path: Path) -> None:
    damage(save_tiny(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "model")


def test_a_chat_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template is None
    settings("tokenizer_config.json", chat_template=5)(folder)
    with pytest.raises(ValueError, match="chat template of .* must be text, got a int"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (text("adapter_config.json", "{"), "adapter_config.json must hold a JSON object"),
        (text("adapter_config.json", NESTED), "adapter_config.json .* nested too deeply"),
        (settings("adapter_config.json", peft_type="NONE"), "adapter_config.json of .* cannot be"),
        (settings("adapter_config.json", r="x"), "the adapters in .* cannot be loaded"),
        (text("generation_config.json", "{"), "generation_config.json must hold a JSON object"),
        (half("adapter_model.safetensors"), "the adapters in .* cannot be loaded .*Safetensor"),
        (gone("adapter_model.safetensors"), "must hold adapter_model.safetensors, and does not"),
    ],
)
def test_damaged_adapters(damage: Damage, message: str, tmp_path: Path) -> None:
    save_adapters(tmp_path / "adapters")
    damage(tmp_path / "adapters")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "adapters", merge_adapters=True)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_code_of_a_folder_is_not_run(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether it may be, which would wait for an answer."""

    def ask(*_: object) -> str:
        pytest.fail("asked")

    monkeypatch.setattr("builtins.input", ask)
    folder = save_tiny(tmp_path / "model")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    code = {
        "AutoConfig": "own.A",
        "AutoModelForCausalLM": "own.B",
        "AutoTokenizer": ["own.C", None],
    }
    settings("config.json", auto_map=code, model_type="own")(folder)
    settings("tokenizer_config.json", auto_map=code, tokenizer_class="Own")(folder)
    with pytest.raises(ValueError, match="it needs code of its own.: that is not run"):
        load(folder)
    assert not (tmp_path / "it-ran").exists()
