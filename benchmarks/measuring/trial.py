"""One implementation is tried: compared with the oracle, and run in each of its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.cases.case import Case, Inputs
from benchmarks.measuring.clock import Clock
from benchmarks.measuring.equality import Checker, Verdict
from benchmarks.measuring.memory import MOST_OF_A_REASON, output_mib
from benchmarks.peers.peer import Call, Outputs, Peer, Setting

PROMISING = 1.5
"""Settings run a second time where their first is within this factor of the fastest first."""


class Ready(NamedTuple):
    """An implementation that takes part."""

    peer: Peer
    call: Call
    setting: Setting
    quick_ms: float
    columns: dict[str, Any]
    """What is known of its line already; its remark is of the settings that were refused."""


class Refused(Exception):
    """Why an implementation, or one of its settings, does not take part."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What all entries of a case are tried with."""

    case: Case
    inputs: Inputs
    checker: Checker
    clock: Clock

    def best(self, peer: Peer) -> Ready:
        """The fastest right one of its settings.

        Raises:
            Refused: none runs and is right.
        """
        settings = peer.settings(self.case, self.inputs.hidden.device)
        ready: list[Ready] = []
        refused: list[str] = []
        for setting in settings:
            try:
                ready.append(self._run(peer, setting))
            except Exception as error:  # another's code: it may raise what it likes
                if self.inputs.hidden.is_cuda:
                    torch.cuda.empty_cache()
                failed = f"fails: {type(error).__name__}: {error}"[:MOST_OF_A_REASON]
                reason = str(error) if isinstance(error, Refused) else failed
                refused.append(f"{written(setting)}: {reason}" if setting else reason)
        if not ready:
            raise Refused("; ".join(refused) or "has no setting for this case")
        fastest = self._fastest(ready)
        fastest.columns.update(settings_tried=len(settings), remark="; ".join(refused))
        return fastest

    def _fastest(self, ready: Sequence[Ready]) -> Ready:
        """By the faster of two runs."""
        most_ms = PROMISING * min(each.quick_ms for each in ready)
        promising = [each for each in ready if each.quick_ms <= most_ms]
        if len(promising) == 1 and not self.inputs.hidden.is_cuda:
            return promising[0]
        again = [
            each._replace(quick_ms=min(each.quick_ms, self.clock(each.call))) for each in promising
        ]
        return min(again, key=lambda each: each.quick_ms)

    def _run(self, peer: Peer, setting: Setting) -> Ready:
        """Compare it, and time a call."""
        checker = self.checker
        compared = not peer.is_floor and peer.other_objective(self.case) is None
        verdicts: list[Verdict] = []
        if compared and not checker.whole:
            smaller = peer.prepare(checker.case, checker.inputs, setting)
            verdicts.append(_refuse_wrong(checker.judge(smaller())))
        call = peer.prepare(self.case, self.inputs, setting)
        if self.inputs.hidden.is_cuda:
            call()  # Triton compiles at the first launch, which is no time of the call's
        kept: list[Outputs] = []
        quick_ms = self.clock(lambda: kept.append(call()))
        outputs = kept.pop()
        if compared and checker.whole:
            verdicts.append(_refuse_wrong(checker.judge(outputs)))
        elif compared and (of_rows := checker.judge_sample(outputs)) is not None:
            verdicts.append(_refuse_wrong(of_rows))
        columns = {"setting": written(setting), "output_mib": output_mib(outputs)}
        if verdicts:
            worst = max(verdicts, key=lambda verdict: verdict.fraction)
            columns |= {"error": worst.error, "error_share": worst.fraction}
            columns["checked_rows"] = checker.case.rows
        return Ready(peer, call, setting, quick_ms, columns)


def written(setting: Setting) -> str:
    """As JSON, the same for equal ones."""
    return json.dumps(dict(setting), sort_keys=True)


def _refuse_wrong(verdict: Verdict) -> Verdict:
    if not verdict.right:
        raise Refused(f"wrong: {verdict}")
    return verdict
