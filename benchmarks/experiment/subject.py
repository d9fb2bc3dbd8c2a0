"""The chat model that the cells fine-tune: the demo's, taught to refuse, or one that is named.

A named model is taken as it is. Its refusals are its own, its chat template keeps its own words,
and where no base is named, the plainly fine-tuned model stands in for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.experiment.alignment import aligned_folder, aligned_model
from benchmarks.experiment.cell import ANCHOR_TOKENS, Cell
from benchmarks.experiment.conversations import finetuning_set
from benchmarks.experiment.protocol import PLAIN_BASE, Protocol
from pact.common.outputs import whole_file
from pact.data.conversation import Conversation
from pact.data.examples import load_examples
from pact.demo.conversations import Split, read, with_system
from pact.demo.shipped import shipped_model
from pact.evaluation.refusals import RefusalsConfig, write_refusals
from pact.models.loading import find_model, load_model, load_tokenizer
from pact.reference.fingerprint import model_fingerprint

BATCH_SIZE = 20

logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A model, and what its cells are compared with."""

    aligned: str | Path
    """Folder, or hub name, of the chat model that the cells start from."""
    base: str | Path | None
    """The model that it was made from; None: the plainly fine-tuned one stands in for it."""
    own: Mapping[str, Path] | None
    """Files of the requests that it refuses, with its refusals, by split, train or heldout; None:
    the demo's refusals, which the aligned model was taught."""
    identity: dict[str, str]
    """Names and digests, for records and their protocol."""
    plain: Path | None = None
    """Folder of the plainly fine-tuned model, where tokens are found against it."""
    anchors: Path | None = None
    """File of the model's own answers, for cells that are held to them."""

    def told(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        """As the model is told them: the demo's behind an empty system turn."""
        return with_system(conversations) if self.own is None else list(conversations)

    def refusals(self, split: Split) -> list[Conversation]:
        """Harmful requests of a split, train or heldout, with their refusals."""
        return read("harmful", split) if self.own is None else load_examples(self.own[split])


def demo_identity(protocol: Protocol, cache: Path) -> dict[str, str]:
    """What the protocol of the demo's records says of its model, known before it is made."""
    return {"aligned": aligned_folder(protocol.alignment, cache).name}


def demo_subject(protocol: Protocol, cache: Path) -> Subject:
    """The demo's model after refusal training, and as shipped; made where they are not there yet.

    Args:
        protocol: with the settings of the refusal training.
        cache: folder that is kept between runs.
    """
    cache.mkdir(parents=True, exist_ok=True)
    shipped = shipped_model(cache)
    aligned = aligned_model(protocol.alignment, shipped, cache)
    return Subject(aligned, shipped, None, demo_identity(protocol, cache))


def named_subject(model: str, base: str | None, cache: Path) -> Subject:
    """A chat model as it is; it is asked for its refusals where they are not at hand yet.

    Args:
        model: folder or hub name.
        base: folder or hub name of the model that it was made from; None has none.
        cache: folder that is kept between runs.

    Raises:
        ValueError: a model is not there, or has no chat template; both have the same weights; or
            the model refuses none of the requests.
    """
    find_model(model)
    if not load_tokenizer(model).chat_template:
        raise ValueError(f"MODEL must be a chat model, got {model}, which has no chat template")
    identity = {"model": name_of(model), "model_hash": _digest(model)}
    identity |= {"base": name_of(base) if base else PLAIN_BASE}
    if base:
        identity["base_hash"] = _digest(base)
        if identity["base_hash"] == identity["model_hash"]:
            raise ValueError(
                f"BASE must be another model than MODEL, got the weights of {model} in {base}: "
                "leave BASE out, and the plainly fine-tuned model stands in for it"
            )
    own = {}
    for split, requests in {"train": _requests(), "heldout": read("harmful", "heldout")}.items():
        own[split] = cache / f"experiment-refusals-{identity['model_hash'][:12]}-{split}.jsonl"
        _ask(model, requests, own[split])
    return Subject(model, base, own, identity)


def name_of(model: str) -> str:
    """The last part of a model's path or hub name."""
    return Path(model).expanduser().absolute().name


def check_refusals(subject: Subject, cells: Iterable[Cell]) -> None:
    """Refuse a model with fewer refusals than the cells mix into their data.

    Raises:
        ValueError: it has fewer.
    """
    refusals = subject.refusals("train")
    for tasks, share in {(cell.tasks, cell.refusal_share) for cell in cells}:
        try:
            finetuning_set(0.0, 0, tasks, share, refusals)
        except ValueError as error:
            raise ValueError(
                f"{subject.aligned} refuses {len(refusals)} of {len(_requests())} harmful "
                f"requests, too few to mix in ({error}): leave methods with refusals out by "
                "--methods, or give a model that refuses more"
            ) from error


def anchors_file(subject: Subject, cache: Path) -> Path:
    """A model's own answers to `anchor_requests`, as it is told them; written on first use."""
    named = subject.identity.get("model_hash", "")[:12]
    path = cache / f"experiment-anchors-{named or Path(subject.aligned).name}.jsonl"
    requests = subject.told(anchor_requests())
    _ask(str(subject.aligned), requests, path, keep="all", max_new_tokens=ANCHOR_TOKENS)
    return path


def anchor_requests() -> list[Conversation]:
    """As many harmful requests as harmless ones, of train: prompts alone, none that is evaluated.

    Of the harmful ones other methods mix refusals in. With the 40 of dev in their place less is
    kept of refusals to prompts of another kind.
    """
    harmful = read("harmful", "train")
    return harmful + read("benign", "train")[: len(harmful)]


def _ask(model: str, requests: Sequence[Conversation], path: Path, **settings: Any) -> None:
    """Write a model's answers to requests, without those that are there, into a file, once."""
    if path.is_file():
        return
    logger.info("asking %s for its own answers, once: %s", model, path.name)
    prompts = path.with_suffix(".requests.jsonl")
    with whole_file(prompts) as partial:
        lines = (json.dumps({"messages": turns[:-1]}) for turns in requests)
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    common: dict[str, Any] = {"model": model, "prompts": str(prompts), "output": str(path)}
    write_refusals(RefusalsConfig(**common, batch_size=BATCH_SIZE, **settings))


def _requests() -> list[Conversation]:
    """The demo's harmful requests for training, with the development set's."""
    return read("harmful", "train") + read("harmful", "dev")


def _digest(model: str) -> str:
    return model_fingerprint(load_model(model, merge_adapters=True))
