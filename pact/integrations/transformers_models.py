"""`pact.patch`: a causal language model of transformers whose forward returns the fused loss.

The model's own forward runs, with two parts exchanged while it does: the output head hands its
states on and gives logits of width 0, which scales, caps and casts pass through at no cost, and the
loss is formed of states and head. So all that the forward does beside (slicing by `logits_to_keep`,
auxiliary losses of experts, checkpointing) stays as it is, and no logits are formed.

The exchange is of the instance's class, so copies of the model are patched too, and nothing of the
model's state changes.

Legend: B sequences, L positions, L' of them kept, N answer rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

import pact_kernels as pk
from pact.integrations.fused_loss import NUM_ITEMS, FusedLoss, Live
from pact.models import (
    captured_states,
    causal_lm,
    check_head,
    head_weight,
)
from pact.objective import CrossEntropy, Objective, PactConfig, PactObjective
from pact.reference.live import AdaptersOff, FrozenModel

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Patch:
    """What a patched model forms its loss with."""

    objective: Objective
    reference: Live | None
    loss: pk.PactLoss | None = field(default=None, repr=False)
    """The parts of the last loss, detached."""


def patch(
    model: Model,
    *,
    tokens: SafetyTokens | None = None,
    pact: PactConfig | None = None,
    reference: Live | None = None,
) -> Model:
    """Make the forward of `model` return the fused loss where labels are given, with `logits=None`.

    Without tokens the loss is the model's own cross-entropy; with them it is PACT's. Labels,
    `shift_labels`, `num_items_in_batch`, `logits_to_keep` and all else mean what they mean to the
    model. Without labels nothing changes. Finding the labelled rows waits for the device once.

    Args:
        model: a causal language model of transformers, with or without PEFT adapters; changed in
            place. Put adapters on first, so that the reference is the model without them.
        tokens: the safety tokens.
        pact: the objective's settings; the default is `PactConfig()`. A gate needs post-only
            inputs, which batches of other trainers do not have.
        reference: the frozen model; the default is the model without its adapters, or a copy.

    Returns:
        The model.

    Raises:
        ValueError: the head is more than `pact_kernels.types.Head` expresses; a setting without
            tokens; a gate; the model is patched already, or compiled, or has a forward or a loss
            function that another library has put on it.
    """
    causal = causal_lm(model)
    if is_patched(model):
        raise ValueError("the model is patched already: call pact.unpatch first")
    _check_own(model, causal)
    if tokens is None and (pact is not None or reference is not None):
        raise ValueError("pact and reference are of the pull on safety tokens, got no tokens")
    check_head(model)
    objective: Objective = CrossEntropy()
    if tokens is not None:
        config = pact or PactConfig()
        if config.settled.gate:
            raise ValueError(
                "a gate needs post-only inputs, which a patched model is not given: set gate=False "
                "(as over='vocabulary' has it), or train with pact.PactTrainer"
            )
        if config.anchors_only:
            raise ValueError(
                "anchors_only is of batches that say which rows are anchors, which a patched model "
                "is not given: leave it off, or train with pact.PactTrainer"
            )
        objective = PactObjective(tokens.ids, tokens.weights, config)
        vocabulary = head_weight(model).shape[0]
        if int(objective.token_ids.max()) >= vocabulary:
            raise ValueError(
                f"safety tokens must be below the model's vocabulary of {vocabulary}, got "
                f"{int(objective.token_ids.max())}: run `pact discover` for this model"
            )
        reference = _default_reference(model) if reference is None else reference
        if not isinstance(reference, AdaptersOff | FrozenModel):
            raise ValueError(
                "a patched model takes AdaptersOff or FrozenModel as its reference, got "
                f"{type(reference).__name__}: a cache needs to know examples, use pact.PactTrainer"
            )
    causal._pact = Patch(objective, reference)
    causal.__class__ = _fused_class(type(causal))
    return model


def unpatch(model: Model) -> Model:
    """Give the model its own forward again; one that is not patched is left alone."""
    causal = causal_lm(model)
    if is_patched(model):
        if not _drop_own_forward(causal):
            raise ValueError(
                "another library has wrapped the patched forward: take its hooks off first (as "
                "accelerate.hooks.remove_hook_from_module does)"
            )
        causal.__class__ = type(causal).__mro__[2]
        del causal._pact
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether `patch` has changed it."""
    causal = causal_lm(model)
    return isinstance(causal, _Fused) and "_pact" in causal.__dict__


def last_loss(model: nn.Module) -> pk.PactLoss | None:
    """Cross-entropy, KL and rows of a patched model's last loss, detached; None before the first.

    Raises:
        ValueError: the model is not patched.
    """
    if not is_patched(model):
        raise ValueError("the model is not patched: call pact.patch first")
    return causal_lm(model)._pact.loss  # type: ignore[no-any-return]


def forget_loss(model: nn.Module) -> None:
    """Let `last_loss` be None until the next one is formed."""
    causal_lm(model)._pact.loss = None


def _check_own(model: nn.Module, causal: Any) -> None:
    """Refuse a model whose forward or loss function is not of its class."""
    if any(hasattr(each, "_orig_mod") for each in (model, causal)):
        raise ValueError("the model is compiled already: patch it first, then call torch.compile")
    if not _drop_own_forward(causal):
        raise ValueError(
            f"{type(causal).__name__} has a forward that another library put on it (hooks of "
            "accelerate's prepare or of a device_map over several devices, TRL's fused head): "
            "patch it before; for TRL, use pact.integrations.trl.PactSFTTrainer"
        )
    if "_loss_function" in causal.__dict__:
        raise ValueError(
            f"{type(causal).__name__} has a loss_function of its own, which a patch would replace: "
            "delete it, or leave the model unpatched"
        )


def _drop_own_forward(causal: Any) -> bool:
    """Whether the forward is that of the class, be it as an attribute that hooks left behind."""
    own = causal.__dict__.get("forward")
    if own is not None and getattr(own, "__func__", None) is type(causal).forward:
        del causal.forward
        own = None
    return own is None


def _default_reference(model: nn.Module) -> Live:
    if hasattr(model, "disable_adapter"):
        return AdaptersOff(model)
    return FrozenModel(copy.deepcopy(model))


class _Fused:
    """The forward of a patched model; comes before the model's own class."""

    _pact: Patch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Callable[..., Any] = super().forward  # type: ignore[misc]
        given = _by_name(own, args, kwargs)
        if given.get("labels") is None or "_pact" not in self.__dict__:
            return own(*args, **kwargs)
        as_tuple = given.pop("return_dict", None) is False
        with captured_states(self) as states:
            loss = FusedLoss(self, given, states)
            with _loss_function(self, loss):
                out = own(**given)
        if loss.calls != 1:
            raise ValueError(
                f"{type(self).__name__} forms its loss without its loss_function, or more than "
                "once: it cannot be patched; use pact.PactTrainer"
            )
        kept = {name: value for name, value in out.items() if name != "logits"}
        out = type(out)(**kept)
        return out.to_tuple() if as_tuple else out

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and _defined_in(value).startswith("trl."):
            raise ValueError(
                "this trainer of TRL puts a loss of its own in the place of a patched model's: "
                "call pact.unpatch first, and use pact.integrations.trl.PactSFTTrainer"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        kind, *others = reduced[1]
        return (_made_anew, (kind.__mro__[2], *others), *reduced[2:])


def _made_anew(kind: type, *arguments: Any) -> Any:
    """An empty patched instance of a class, for copies and pickles to fill."""
    fused = _fused_class(kind)
    return fused.__new__(fused, *arguments)


def _defined_in(function: Any) -> str:
    """The module that a function, or a method, was written in."""
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call, all by name."""
    signature = inspect.signature(function)
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _fused_class(kind: type) -> type:
    """`kind` with the fused forward before its own, and with its names, which files state."""
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    made = type(kind.__name__, (_Fused, kind), names)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Fused.forward(self, *args, **kwargs)

    # What trainers read to know which columns and arguments the model takes.
    forward.__signature__ = _with_num_items(inspect.signature(kind.forward))  # type: ignore[attr-defined]
    made.forward = forward  # type: ignore[attr-defined]
    return made


def _with_num_items(signature: inspect.Signature) -> inspect.Signature:
    """The same with the denominator by name, where it is among the arguments by keyword."""
    parameters = list(signature.parameters.values())
    last = parameters[-1]
    if last.kind is not inspect.Parameter.VAR_KEYWORD or NUM_ITEMS in signature.parameters:
        return signature
    named = inspect.Parameter(NUM_ITEMS, inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*parameters[:-1], named, last])


@contextmanager
def _loss_function(causal: Any, loss: Callable[..., Tensor]) -> Iterator[None]:
    own = causal.__dict__.get("_loss_function")
    causal._loss_function = loss
    try:
        yield
    finally:
        del causal._loss_function
        if own is not None:
            causal._loss_function = own
