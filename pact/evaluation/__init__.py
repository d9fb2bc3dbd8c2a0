"""What fine-tuning did to a model: does it still refuse, too much even, has it learnt its task.

The data flow one way, one module a step, and nothing is imported before it is asked for:

    config     the settings, as flags and YAML keys see them
    prompts    a file  ->  conversations that wait for an answer
    inference  a model's mode, and its states on answer rows
    generate   prompts  ->  greedy answers
    judges     answers  ->  verdicts: is it a refusal
    intervals  yes-or-no outcomes  ->  a share with its Wilson interval
    heldout    loss, perplexity, and exact match
    drift      distance from the reference on the safety tokens
    result     the values of one evaluation
    measure    `evaluate`: all of the above, on a model in memory
    table      results  ->  text, one or several side by side
    report     a result  <->  files
    run        `run_evaluate`: from files to files
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pact.common.lazy import lazy_names

if TYPE_CHECKING:
    from pact.evaluation.config import EvaluateConfig
    from pact.evaluation.judges.registry import register_judge
    from pact.evaluation.measure import evaluate
    from pact.evaluation.result import Evaluation
    from pact.evaluation.run import run_evaluate
    from pact.evaluation.table import comparison_table

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "comparison_table",
    "evaluate",
    "register_judge",
    "run_evaluate",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EvaluateConfig": "pact.evaluation.config",
        "Evaluation": "pact.evaluation.result",
        "comparison_table": "pact.evaluation.table",
        "evaluate": "pact.evaluation.measure",
        "register_judge": "pact.evaluation.judges.registry",
        "run_evaluate": "pact.evaluation.run",
    },
)
