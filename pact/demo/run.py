"""`run_demo`: the whole story in one call, from the shipped model to a table and a picture."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from pact.demo.config import DemoConfig
from pact.demo.conversations import finetuning_set
from pact.demo.report import Result, demo_table, plot_demo
from pact.demo.shipped import shipped_model
from pact.demo.stages import aligned_model, arms, finetune, measure, safety_tokens
from pact.discovery.show import token_table
from pact.evaluation.report import save_evaluation
from pact.loading import load_model, load_tokenizer
from pact.outputs import check_folder
from pact.settings import user_path
from pact.training.config import save_configs

logger = logging.getLogger(__name__)


def run_demo(config: DemoConfig) -> dict[str, Result]:
    """Align a small chat model, fine-tune it three ways, and print what is left of its refusals.

    Writes to `config.output_dir`: config.yaml, tokens-<k>.safetensors, tokens.txt, table.txt,
    results.json, demo.png, and a folder for each model with its evaluation and its generations.

    Returns:
        The results by the name of the model: aligned, plain, and the two PACT arms.

    Raises:
        ValueError: the demo's model is not installed, the harmful share asks for more than is
            shipped, or a folder cannot be written to.
    """
    config = config.shortened()
    finetuning_set(
        config.harmful_share, config.seed
    )  # refuses a share beyond the data, before work
    output, cache = (user_path(p) for p in (config.output_dir, config.cache_dir))
    check_folder(output, "output_dir")
    check_folder(cache, "cache_dir")
    output.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    save_configs(output, (config,))
    start_s = time.perf_counter()

    with _stage("1. refusal training of the shipped model, which as it comes refuses nothing"):
        shipped = shipped_model(cache)
        aligned = aligned_model(config, shipped, cache)
    with _stage("2. safety tokens: where the aligned model differs from the shipped one"):
        tokens = safety_tokens(config, aligned, shipped)
        for top_k, found in tokens.items():
            found.save(output / f"tokens-{top_k}.safetensors")
        shown = tokens[config.top_k]
        table = token_table(shown, load_tokenizer(aligned))
        (output / "tokens.txt").write_text(table, encoding="utf-8")
        print("\n".join(table.splitlines()[:12]))

    results: dict[str, Result] = {}
    with _stage("3. the aligned model's refusals"):
        evaluation = measure(config, load_model(aligned), aligned, shown)
        results["aligned"] = Result(evaluation, [], 0.0)
    for number, arm in enumerate(arms(config), start=4):
        with _stage(f"{number}. fine-tuning: {arm.name}"):
            before_s = time.perf_counter()
            model, records = finetune(config, arm, aligned, tokens)
            seconds = time.perf_counter() - before_s
            results[arm.name] = Result(
                measure(config, model, aligned, shown), records, seconds / config.steps
            )
    for name, result in results.items():
        folder = output / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        save_evaluation(result.evaluation, folder)
    minutes = (time.perf_counter() - start_s) / 60
    table = demo_table(results, config, minutes)
    (output / "table.txt").write_text(table, encoding="utf-8")
    numbers = {name: result.numbers() for name, result in results.items()}
    summary = {"config": asdict(config), "minutes": minutes, "results": numbers}
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot_demo(results, config, output / "demo.png")
    print(table)
    logger.info("table, picture and every generated answer are in %s", output)
    return results


@contextmanager
def _stage(name: str) -> Iterator[None]:
    logger.info("%s", name)
    start_s = time.perf_counter()
    yield
    logger.info("   done in %.0f s", time.perf_counter() - start_s)
