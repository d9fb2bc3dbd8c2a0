"""Safety tokens from scores, on disk, and against tokenizers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from pact.discovery.tokens import FORMAT, SafetyTokens, tokenizer_hash
from tests.tiny import tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "discovery.npz"


def some_tokens(**metadata: str) -> SafetyTokens:
    return SafetyTokens(
        torch.tensor([3, 300]),
        torch.tensor([0.8, -0.6]),
        torch.tensor([0.5, 0.25]),
        torch.tensor([0.125, 0.0]),
        metadata,
    )


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
def test_released_values(mode: str) -> None:
    with np.load(GOLDEN) as arrays:
        golden = {name: arrays[name] for name in arrays}
    parameters = json.loads(str(golden["parameters_json"]))
    differences, confidences = [], []
    for sample in range(parameters["num_samples"]):
        log_aligned, log_base = (
            torch.from_numpy(golden[f"{model}_logits_{sample}"])
            .double()
            .div(parameters["temperature"])
            .log_softmax(-1)
            for model in ("aligned", "base")
        )
        aligned = log_aligned.exp()
        if mode == "p_diff":
            change = aligned - log_base.exp()
        else:
            change = aligned * (log_base - log_aligned)
        differences.append(change.mean(0))
        confidences.append(aligned.mean(0))
    difference, confidence = torch.stack(differences).mean(0), torch.stack(confidences).mean(0)
    tokens = SafetyTokens.from_scores(difference, confidence, parameters["top_k"])
    expected = torch.from_numpy(golden[f"v_dir_{mode}"])
    assert torch.equal(tokens.ids, expected.nonzero().flatten())
    scale = expected.abs().max()
    error = (tokens.weights - expected[tokens.ids]).abs().max() / scale
    assert error < 1e-5
    assert tokens.aligned_confidence is not None
    torch.testing.assert_close(tokens.aligned_confidence, confidence[tokens.ids].float())


def test_from_scores_by_hand() -> None:
    confidence = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    difference = torch.tensor([9.0, 0.75, 9.0, 0.25, -0.25])  # ids 0 and 2 are not among the top 3
    tokens = SafetyTokens.from_scores(difference, confidence, top_k=3)
    # kept 0.75, 0.25, -0.25: mean 0.25, std (n - 1) 0.5, so 1, 0, -1; id 3 is at the mean: no token
    assert tokens.ids.tolist() == [1, 4]
    assert tokens.ids.dtype == torch.int64
    expected = torch.tensor([1.0, -1.0]) / math.sqrt(2)
    torch.testing.assert_close(tokens.weights, expected, rtol=1e-5, atol=0)
    assert tokens.aligned_confidence is not None
    assert torch.equal(tokens.aligned_confidence, torch.tensor([0.4, 0.2]))


def test_negligible_entries_are_left_out_of_the_statistics() -> None:
    confidence = torch.tensor([0.5, 0.3, 0.2])
    difference = torch.tensor([0.2, 0.0, 0.6])
    tokens = SafetyTokens.from_scores(difference, confidence, top_k=3)
    assert tokens.ids.tolist() == [0, 2]  # with the 0 counted, all three would be centred off 0
    assert tokens.weights[0] == -tokens.weights[1] < 0


def test_equal_confidences_keep_the_lower_id() -> None:
    confidence = torch.full((40,), 0.025)  # 40: beyond the width at which an unstable sort shows
    difference = torch.arange(40.0) + 1
    assert SafetyTokens.from_scores(difference, confidence, top_k=2).ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("difference", "confidence", "top_k", "message"),
    [
        ([1.0, 0.5], [0.5, 0.5], 0, "top_k must be between 2 and the vocabulary's 2 tokens, got 0"),
        ([1.0, 0.5], [0.5, 0.5], 3, "got 3: the paper keeps 50"),
        ([1.0, 0.0, 2.0], [0.5, 0.4, 0.1], 2, "at least two of the top_k=2 tokens .* got 1: raise"),
        ([0.0, 0.0], [0.5, 0.5], 2, "got 0: raise top_k, or give another base model"),
        ([0.25, 0.25], [0.5, 0.5], 2, "safety tokens need at least one id"),
        ([math.nan, 0.5], [0.5, 0.5], 2, "scores must be finite"),
        ([1.0], [0.5, 0.5], 2, r"must both be \(V,\), got \(1,\) and \(2,\)"),
    ],
)
def test_scores_without_tokens_are_refused(
    difference: list[float], confidence: list[float], top_k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SafetyTokens.from_scores(torch.tensor(difference), torch.tensor(confidence), top_k)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (torch.empty(0, dtype=torch.int64), torch.empty(0), "at least one id"),
        (torch.tensor([1, 2], dtype=torch.int32), torch.ones(2), "at least one id, .*int32"),
        (torch.tensor([2, 1]), torch.ones(2), "must be ascending, distinct"),
        (torch.tensor([1, 1]), torch.ones(2), "must be ascending, distinct"),
        (torch.tensor([-1, 1]), torch.ones(2), "at least 0"),
        (torch.tensor([1, 2]), torch.ones(3), r"one entry for each of the 2 ids, got \(3,\)"),
        (torch.tensor([1, 2]), torch.ones(2).double(), "finite and fp32"),
        (torch.tensor([1, 2]), torch.tensor([1.0, math.inf]), "finite and fp32"),
    ],
)
def test_fields_are_checked(ids: torch.Tensor, weights: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SafetyTokens(ids, weights)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.safetensors"
    tokens = some_tokens(aligned="a", mode="p_diff")
    tokens.save(path)
    loaded = SafetyTokens.load(path)
    for name in ("ids", "weights", "aligned_confidence", "base_confidence"):
        assert torch.equal(getattr(loaded, name), getattr(tokens, name))
    assert loaded.metadata == {"aligned": "a", "mode": "p_diff"}
    bare = SafetyTokens(tokens.ids, torch.arange(4.0)[::2])  # non-contiguous, over an older file
    bare.save(path)
    loaded = SafetyTokens.load(path)
    assert loaded.weights.tolist() == [0.0, 2.0]
    assert loaded.aligned_confidence is loaded.base_confidence is None
    assert [file.name for file in path.parent.iterdir()] == ["tokens.safetensors"]


def test_a_new_file_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    path, reader = tmp_path / "tokens.safetensors", tmp_path / "reader"
    some_tokens(aligned="old").save(path)
    os.link(path, reader)  # as a process that has the old file open sees it
    some_tokens(aligned="new").save(path)
    assert SafetyTokens.load(reader).metadata["aligned"] == "old"
    assert SafetyTokens.load(path).metadata["aligned"] == "new"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    some_tokens(aligned="old").save(path)
    broken = some_tokens(aligned=3)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="str"):
        broken.save(path)
    assert SafetyTokens.load(path).metadata["aligned"] == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_not_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(ValueError, match="does not exist: run `pact discover`"):
        SafetyTokens.load(path)
    some_tokens().save(path)
    whole = path.read_bytes()
    for content in (b"", b"not a safetensors file", whole[:-3]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file of safety tokens"):
            SafetyTokens.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not a file of safety tokens .*format="):
        SafetyTokens.load(path)


def test_the_hash_survives_saving_and_ignores_roles(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(tokenizer).from_pretrained(tmp_path)) == before
    tokenizer.pad_token = tokenizer.eos_token = (
        "<|endoftext|>"  # as the base of a chat model has it
    )
    assert tokenizer_hash(tokenizer) == before


def test_the_hash_sees_vocabulary_merges_and_added_tokens() -> None:
    before = tokenizer_hash(tiny_tokenizer())
    added = tiny_tokenizer()
    added.add_tokens(["<new>"])
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    content["model"]["merges"][:2] = content["model"]["merges"][1::-1]
    merges = tiny_tokenizer()
    merges._tokenizer = Tokenizer.from_str(json.dumps(content))
    assert len({before, tokenizer_hash(added), tokenizer_hash(merges)}) == 3

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="fast one to be compared, got Slow"):
        tokenizer_hash(Slow())


def test_another_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = "given-model"
    known = {"tokenizer_hash": tokenizer_hash(tokenizer), "tokenizer_size": str(len(tokenizer))}
    some_tokens(aligned="found-model", **known).check_tokenizer(tokenizer)
    both = "tokenizer of found-model, got the tokenizer of given-model"
    with pytest.raises(ValueError, match=f"{both}.*the same size, other entries"):
        some_tokens(aligned="found-model", **known | {"tokenizer_hash": "x"}).check_tokenizer(
            tokenizer
        )
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=f"{both}.*320 tokens against 321"):
        some_tokens(aligned="found-model", **known).check_tokenizer(tokenizer)


def test_without_a_stored_hash_the_ids_are_compared() -> None:
    tokenizer = tiny_tokenizer()
    some_tokens().check_tokenizer(tokenizer)
    beyond = SafetyTokens(torch.tensor([3, 320]), torch.ones(2))
    with pytest.raises(ValueError, match="an unnamed model.*token id 320 against 320 tokens"):
        beyond.check_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, math.nan], "aligned_confidence must be probabilities, got nan"),
        ([0.5, 1.5], "must be probabilities, got 1.5"),
        ([-0.5, 0.5], "must be probabilities, got -0.5"),
        ([1, 0], "must be fp32, got torch.int64"),
    ],
)
def test_confidences_are_probabilities(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SafetyTokens(torch.tensor([1, 2]), torch.ones(2), torch.tensor(values))
    rounded = torch.tensor([0.5, 1.0 + 1e-6])
    assert SafetyTokens(torch.tensor([1, 2]), torch.ones(2), rounded).ids.numel() == 2


IDS, WEIGHTS = torch.tensor([3, 300]), torch.tensor([0.8, -0.6])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ids": IDS}, r"it must hold \('ids', 'weights'\), .* got \['ids'\]"),
        ({"weights": WEIGHTS}, r"it must hold .* got \['weights'\]"),
        ({"ids": IDS, "weights": WEIGHTS, "more": WEIGHTS + 1}, "got .'ids', 'more', 'weights'"),
        ({"ids": IDS, "weights": WEIGHTS, "metadata": WEIGHTS + 1}, "it must hold"),
        ({"ids": IDS.float(), "weights": WEIGHTS}, "int64, got .* torch.float32"),
        ({"ids": IDS[None], "weights": WEIGHTS}, r"got \(1, 2\)"),
        ({"ids": IDS, "weights": WEIGHTS[:1]}, "one entry for each of the 2 ids"),
        ({"ids": IDS, "weights": WEIGHTS.half()}, "finite and fp32, got torch.float16"),
        ({"ids": IDS, "weights": WEIGHTS * math.nan}, "finite and fp32"),
    ],
)
def test_files_of_other_tensors_are_refused(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.safetensors"
    save_file(tensors, path, metadata={"format": FORMAT})
    with pytest.raises(ValueError, match=f"is not a file of safety tokens .*{message}"):
        SafetyTokens.load(path)


def test_a_file_from_before_the_digest_loads_and_a_later_version_does_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    save_file({"ids": IDS, "weights": WEIGHTS}, path, metadata={"format": FORMAT, "aligned": "a"})
    assert SafetyTokens.load(path).metadata == {"aligned": "a"}
    save_file({"ids": IDS, "weights": WEIGHTS}, path, metadata={"format": "pact_safety_tokens_2"})
    with pytest.raises(ValueError, match="of format 'pact_safety_tokens_2', where this version"):
        SafetyTokens.load(path)


def test_a_changed_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """Each byte of the file: in its head, in the metadata, in every tensor."""
    path = tmp_path / "tokens.safetensors"
    some_tokens(aligned="model").save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            found = SafetyTokens.load(path)
        except ValueError:
            continue
        # The digest's own name, or spaces in the head: nothing that is read.
        assert found.ids.tolist() == [3, 300] and found.metadata["aligned"] == "model"
        assert torch.equal(found.weights, some_tokens().weights)
        for name in ("aligned_confidence", "base_confidence"):
            assert torch.equal(getattr(found, name), getattr(some_tokens(), name))
    path.write_bytes(whole)
    assert SafetyTokens.load(path).metadata == {"aligned": "model"}


def head(**entries: object) -> bytes:
    """A safetensors file of ids and weights whose head is written by hand."""
    written: dict[str, object] = {
        "__metadata__": {"format": FORMAT},
        "ids": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "weights": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    }
    text = json.dumps(written | entries).encode()
    data = IDS.numpy().tobytes() + WEIGHTS.numpy().tobytes()
    return len(text).to_bytes(8, "little") + text + data


def weights_entry(shape: list[int], end: int = 24, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [16, end]}


@pytest.mark.parametrize(
    "content",
    [
        head(weights=weights_entry([-2])),
        head(weights=weights_entry([2**40, 2**40])),
        head(weights=weights_entry([2**48], 2**50)),
        head(weights=weights_entry([8], kind="F8_E4M3")),
        head(weights=weights_entry([1], kind="C64")),
        head(ids={"dtype": "BOOL", "shape": [16], "data_offsets": [0, 16]}),
        head(__metadata__={"format": {"a": 1}}),
        (2**62).to_bytes(8, "little") + b"{}",
        (90_000).to_bytes(8, "little") + b"[" * 90_000,
    ],
    ids=["negative", "overflow", "beyond", "8 bits", "complex", "bool", "metadata", "size", "deep"],
)
def test_absurd_heads_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    path.write_bytes(head())
    assert SafetyTokens.load(path).ids.tolist() == [3, 300]  # the hand's own is sound
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of safety tokens"):
        SafetyTokens.load(path)


@pytest.mark.parametrize("size", ["abc", "-1", "320.0", ""])
def test_a_size_that_is_none_is_another_tokenizers(size: str) -> None:
    with pytest.raises(ValueError, match=f"whose vocabulary differs .{size} tokens against 320"):
        some_tokens(tokenizer_size=size).check_tokenizer(tiny_tokenizer())


def test_an_error_does_not_steer_the_terminal() -> None:
    found = some_tokens(aligned="\x1b[31mred", tokenizer_size="\x1b[2J")
    with pytest.raises(ValueError, match="tokens against 320") as error:
        found.check_tokenizer(tiny_tokenizer())
    assert "\x1b" not in str(error.value) and "red" in str(error.value)
