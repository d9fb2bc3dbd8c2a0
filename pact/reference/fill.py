"""Filling a cache: the frozen model runs over the data set, a shard at a time, at inference speed.

Shards that are whole on disk are left alone, so a killed run goes on where it was. Launches that
fill one cache at once share its shards: each takes what no other is at work on.

Legend: N answer rows of a batch, n of an example, K safety tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import transformers
from torch import Tensor

from pact.common.progress import progress_bar
from pact.data.batches import length_batches
from pact.models import base_head, causal_lm
from pact.models.loading import DTYPES
from pact.objective import PactObjective
from pact.objective.pact import holds_anchors_only
from pact.reference.cache import ReferenceCache
from pact.reference.centred import CentredLogits, centred_reference
from pact.reference.columns import Columns, read_columns
from pact.reference.folder import has_left, remove_left, tidy
from pact.reference.live import AdaptersOff, FrozenModel
from pact.reference.locks import held, lock_path
from pact.reference.shards import (
    CACHE_DTYPES,
    Layout,
    is_valid,
    remove_partial,
    write_json,
    write_shard,
    writing,
)
from pact_kernels.types import Head

logger = logging.getLogger(__name__)

META_FILE = "meta.json"
"""Facts for a person; nothing reads it."""

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


def fill_cache(
    dataset: Sequence[Mapping[str, Any]] | Any,
    reference: AdaptersOff | FrozenModel,
    objective: PactObjective,
    collator: Collate,
    *,
    folder: str | Path,
    dtype: str = "fp16",
    compute_dtype: str = "fp32",
    max_tokens: int = 8192,
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> ReferenceCache:
    """Run the frozen model over the shards of this process that are not whole on disk yet.

    Args:
        dataset: examples with `input_ids` and `labels`; their indices here name them later.
        reference: the frozen model, on the device where it is to run.
        objective: its safety tokens, `over`, and whether it has a gate; where it holds anchors
            alone, other examples are left out.
        collator: examples -> one batch; with post-only inputs if the objective has a gate.
        folder: `<cache_dir>/<cache_key(...)>`, since nothing here checks what a shard was made of.
        dtype: what the values are kept in, "fp16" or "fp32".
        compute_dtype: "bf16" runs the products under autocast, as the training loop does.
        max_tokens: most positions of a batch, padding included.
        process_index: this process, from 0.
        num_processes: processes that fill the cache; shards go round among them.
        progress: whether to show a bar of answer rows.

    Returns:
        The cache, which checks its files on first use: wait for all processes before.

    Raises:
        ValueError: the folder cannot be written; or the reference gives values that are no numbers,
            or that the dtype cannot hold, which it says with the example.
    """
    folder = Path(folder)
    columns = read_columns(dataset, holds_anchors_only(objective))
    layout = Layout(
        lengths=columns.lengths,
        row_counts=columns.row_counts(),
        num_tokens=objective.token_ids.numel(),
        contexts=("full", "post") if objective.needs_post_only else ("full",),
        dtype=dtype,
    )
    cache = ReferenceCache(folder, layout, objective.config.over)
    filler = _Filler(cache, columns, reference, objective, collator, compute_dtype, max_tokens)
    own = range(process_index, layout.num_shards, num_processes)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [shard for shard in own if not is_valid(folder, shard, layout)]
        tidy(folder, layout, set(own) - set(missing))
        if process_index == 0:
            _describe(folder, _meta(cache, reference, compute_dtype))
    done, total = (
        sum(int(layout.row_counts[layout.examples(shard)].sum()) for shard in shards)
        for shards in (set(own) - set(missing), own)
    )
    start = time.perf_counter()
    with progress_bar(total, "reference", "row", initial=done, show=progress) as bar:
        busy = [shard for shard in missing if not filler.fill(shard, bar, wait=False)]
        if busy:
            logger.info("another launch fills %d shards of %s: waiting for it", len(busy), folder)
        for shard in busy:
            filler.fill(shard, bar, wait=True)
    elapsed_s = time.perf_counter() - start
    if missing:
        logger.info(
            "reference cache %s: %d rows of %d bytes, %.0f rows/s",
            folder,
            total - done,
            cache.bytes_per_row,
            (total - done) / max(elapsed_s, 1e-9),
        )
    return cache


def _describe(folder: Path, facts: Mapping[str, object]) -> None:
    """Write the facts for a person where they are not there, unless another launch does."""
    path = folder / META_FILE
    if path.exists():
        if has_left(path):
            remove_left(path)
        return
    with held(path, wait=False) as state:
        if state == "busy":
            return
        if state == "held":
            remove_partial(path)
        if not path.exists():
            write_json(path, facts)
        lock_path(path).unlink(missing_ok=True)


class _Filler(NamedTuple):
    """What it takes to compute a shard."""

    cache: ReferenceCache
    columns: Columns
    reference: AdaptersOff | FrozenModel
    objective: PactObjective
    collator: Collate
    compute_dtype: str
    max_tokens: int

    def fill(self, shard: int, bar: Any, *, wait: bool) -> bool:
        """Write a shard that is missing, unless another launch did since; whether it is there now.

        Args:
            shard: its number.
            bar: counts its rows.
            wait: for another launch that is at work on it; else it is left to that one.
        """
        folder, layout = self.cache.folder, self.cache.layout
        path = layout.path(folder, shard)
        with held(path, wait=wait) as state:
            if state == "busy":
                return False
            if state == "held":
                remove_partial(path)
            if is_valid(folder, shard, layout):
                bar.update(int(layout.row_counts[layout.examples(shard)].sum()))
            else:
                values = self.values(shard, bar)
                with writing(folder):
                    write_shard(folder, shard, layout, values)
            lock_path(path).unlink(missing_ok=True)
        return True

    @torch.no_grad()
    def values(self, shard: int, bar: Any) -> dict[str, list[np.ndarray]]:
        """Per context, (n, K) of every example of a shard."""
        layout = self.cache.layout
        head = base_head(self.reference.model)
        examples = layout.examples(shard)
        empty = np.empty(0, CACHE_DTYPES[layout.dtype])
        values: dict[str, list[np.ndarray]] = {
            context: [empty] * len(examples) for context in layout.contexts
        }
        with_rows = np.flatnonzero(layout.row_counts[examples])
        lengths = layout.lengths[examples[with_rows]].tolist()
        for batch in length_batches(lengths, max_tokens=self.max_tokens):
            lines = with_rows[batch]
            indices = examples[lines]
            counts = layout.row_counts[indices]
            kept = self._kept(indices, int(counts.sum()), head)
            for context in layout.contexts:
                rows = self._stored(getattr(kept, context), indices, context).numpy()
                for line, part in zip(lines, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
                    values[context][line] = part
            bar.update(int(counts.sum()))
        return values

    def _kept(self, indices: np.ndarray, num_rows: int, head: Head) -> CentredLogits:
        """The values of one batch."""
        device = head.weight.device
        batch = self.collator([self.columns.example(index) for index in indices])
        assert batch["row_step"].numel() == num_rows
        batch = {name: value.to(device) for name, value in batch.items()}
        token_ids = self.objective.token_ids.to(device)
        with torch.autocast(device.type, torch.bfloat16, self.compute_dtype == "bf16"):
            return centred_reference(self.reference(batch), head, token_ids, self.cache.over)

    def _stored(self, values: Tensor, indices: np.ndarray, context: str) -> Tensor:
        """(N, K) values of a batch as the cache keeps them, on the CPU.

        A token that a model rules out has the logit -inf, which any dtype holds.

        Raises:
            ValueError: one is NaN or infinite otherwise, or becomes so.
        """
        layout = self.cache.layout
        stored = values.to(DTYPES[layout.dtype])
        lost = (~stored.isfinite() & (values != -torch.inf)).any(-1).cpu()  # (N,)
        if not bool(lost.any()):
            return stored.cpu()
        first = int(lost.nonzero()[0])
        example = np.repeat(indices, layout.row_counts[indices])[first]
        where = f"for example {example} of the data (from 0, {context} context)"
        row = values[first]
        if bool((row.isfinite() | (row == -torch.inf)).all()):
            raise ValueError(
                f"the reference's values must be within {layout.dtype} to be kept so, got "
                f"{row[row.isfinite()].min().item():.6g} {where}: set cache_dtype=fp32"
            )
        raise ValueError(
            f"the reference's values must be numbers, got NaN or infinity {where}: the model gives "
            "them, so its files are damaged, or its products overflow (dtype=fp32)"
        )


def _meta(
    cache: ReferenceCache, reference: AdaptersOff | FrozenModel, compute_dtype: str
) -> dict[str, object]:
    """Facts for a person."""
    layout = cache.layout
    model = causal_lm(reference.model)
    return {
        "model": model.config.name_or_path or type(model).__name__,
        "reference": type(reference).__name__,
        "examples": len(layout.lengths),
        "tokens": int(layout.lengths.sum()),
        "rows": cache.num_rows,
        "safety_tokens": layout.num_tokens,
        "contexts": list(layout.contexts),
        "over": cache.over,
        "dtype": layout.dtype,
        "compute_dtype": compute_dtype,
        "bytes_per_row": cache.bytes_per_row,
        "size_mib": round(cache.num_rows * cache.bytes_per_row / 2**20, 3),
        "shards": layout.num_shards,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
    }
