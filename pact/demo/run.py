"""`run_demo`: the whole story in one call, from the shipped model to a table and a page."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pact.common.outputs import check_folder
from pact.common.settings import user_path
from pact.demo.alignment import WEIGHTS, aligned_adapters, read_facts
from pact.demo.config import DemoConfig
from pact.demo.conversations import finetuning_set
from pact.demo.page import write_page
from pact.demo.pictures import plot_demo
from pact.demo.shipped import shipped_model
from pact.demo.stages import arms, finetune, measure, safety_tokens
from pact.demo.table import Result, benign, demo_table, harmful, task
from pact.discovery.show import token_table
from pact.evaluation import Evaluation
from pact.evaluation.report import save_evaluation
from pact.models.loading import load_model, load_tokenizer
from pact.training.config import save_configs

logger = logging.getLogger(__name__)


def run_demo(config: DemoConfig) -> dict[str, Result]:
    """Fine-tune a small aligned chat model three ways, and show what is left of its refusals.

    Writes to `config.output_dir`: report.html, table.txt, results.json, demo.png, config.yaml,
    tokens.safetensors, tokens.txt, the aligned model's adapters, and a folder for each model
    with its evaluation and its generations.

    Returns:
        The results by the name of the model: aligned, plain, and the two PACT arms.

    Raises:
        ValueError: the demo's model is not installed or is not that of the shipped adapters, the
            harmful share asks for more than is shipped, or a folder cannot be written to.
    """
    given, config = config, config.shortened()
    finetuning_set(config.harmful_share, config.seed)  # refuses a share beyond the data
    output, cache = (user_path(p) for p in (config.output_dir, config.cache_dir))
    check_folder(output, "output_dir")
    check_folder(cache, "cache_dir")
    output.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    save_configs(output, (given,))
    start_s = time.perf_counter()

    way = "trained from scratch" if config.from_scratch else "as the demo ships it"
    with _stage(f"1. the aligned model, {way}; as it comes, the model refuses nothing"):
        shipped = shipped_model(cache)
        adapters = aligned_adapters(config, shipped, output / "adapters")
        aligned, tokenizer = load_model(adapters, merge_adapters=True), load_tokenizer(adapters)
    with _stage("2. safety tokens: where the aligned model differs from the shipped one"):
        tokens = safety_tokens(config, aligned, load_model(shipped), tokenizer)
        tokens.save(output / "tokens.safetensors")
        listed = token_table(tokens, tokenizer)
        (output / "tokens.txt").write_text(listed, encoding="utf-8")
        print("\n".join(listed.splitlines()[:12]))

    results: dict[str, Result] = {}
    with _stage("3. the aligned model's refusals"):
        evaluation = measure(config, aligned, tokenizer, tokens)
        results["aligned"] = Result(evaluation, [], 0.0)
        _say(evaluation)
    for number, arm in enumerate(arms(config), start=4):
        with _stage(f"{number}. fine-tuning: {arm.name}"):
            before_s = time.perf_counter()
            model, records = finetune(config, arm, aligned, tokenizer, tokens)
            seconds = time.perf_counter() - before_s
            evaluation = measure(config, model, tokenizer, tokens)
            results[arm.name] = Result(evaluation, records, seconds / records[-1]["step"])
            _say(evaluation)
    minutes = (time.perf_counter() - start_s) / 60
    facts = read_facts(adapters / WEIGHTS)
    facts["sha256"] = hashlib.sha256((adapters / WEIGHTS).read_bytes()).hexdigest()
    _write_results(output, config, results, facts, minutes)
    page = output / "report.html"
    write_page(page, given, results, tokens=listed, facts=facts, minutes=minutes)
    print(demo_table(results, config, minutes))
    print(f"every answer, the curves and the table side by side: {page}")
    return results


def _say(evaluation: Evaluation) -> None:
    """What came out, before the rest of the demo has run."""
    refused = harmful(evaluation).starts, benign(evaluation).contains
    counts = [f"{rate.successes} of {rate.n}" for rate in (*refused, task(evaluation))]
    logger.info("   it refuses %s harmful and %s benign requests; task: %s right", *counts)


def _write_results(
    output: Path,
    config: DemoConfig,
    results: Mapping[str, Result],
    facts: Mapping[str, Any],
    minutes: float,
) -> None:
    """Write each model's evaluation, and what compares them but for the page."""
    for name, result in results.items():
        folder = output / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        save_evaluation(result.evaluation, folder)
    (output / "table.txt").write_text(demo_table(results, config, minutes), encoding="utf-8")
    numbers = {name: result.numbers() for name, result in results.items()}
    summary = {"config": asdict(config), "adapters": facts, "minutes": minutes, "results": numbers}
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot_demo(results, config, output / "demo.png")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    logger.info("%s", name)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    yield
    seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    logger.info("   done in %.0f s, %.0f s of processor time", seconds, cpu_seconds)
