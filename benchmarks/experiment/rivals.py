"""What methods do that are more than an objective: data by turns, and adapters that are projected.

    Turns, Proximal    Lisa (Huang et al. 2024)
    project_adapters   SafeLoRA (Hsu et al. 2024)

"Plain, then a patch of one refusal" (arXiv 2601.01887) needs no code: it is a second `fit`.

Legend: O outputs and I inputs of a linear layer, R rank of its adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import pact_kernels as pk
from pact.objective import CrossEntropy
from pact_kernels.types import Head

ALIGNMENT_STEPS = 2
USER_STEPS = 10
"""Steps of a turn. The paper's are 100 and 900, of a run that is some fifty times longer."""
ADAPTER = "default"


class Proximal(CrossEntropy):
    """Cross-entropy + the squared distance of what is trained from where it was at the last switch.

        loss = mean_n CE_n + rho / 2 sum_w (w - w_switch)^2

    Args:
        parameters: what is trained.
        rho: weight of the distance; at least 0.

    Source: Huang et al., "Lisa: Lazy Safety Alignment for Large Language Models against Harmful
    Fine-tuning Attack", NeurIPS 2024 (arXiv 2405.18641), the proximal term of both states.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rho: float) -> None:
        assert 0 <= rho < float("inf"), rho
        self.parameters = list(parameters)
        self.rho = rho
        self.switch_point: list[Tensor] | None = None  # None is where the next forward is

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates | None = None,
        *,
        num_items: int | Tensor | None = None,
    ) -> pk.PactLoss:
        """Loss of N answer rows; the distance is added by their part of the step's rows."""
        plain = super().__call__(hidden, head, target, step, reference, num_items=num_items)
        if self.switch_point is None:
            self.switch_point = [p.detach().clone() for p in self.parameters]
        pairs = zip(self.parameters, self.switch_point, strict=True)
        distance = torch.stack([(p - before).square().sum() for p, before in pairs]).sum()
        part = 1.0 if num_items is None else target.numel() / num_items
        return plain._replace(loss=plain.loss + self.rho / 2 * part * distance)


class Turns(Sequence[Mapping[str, Any]]):
    """The user's examples and the alignment's by turns, as the loop asks for them step by step.

    A cycle is `ALIGNMENT_STEPS` on the alignment's, then `USER_STEPS` on the user's. The loop's
    own order of the user's examples is kept; an index beyond the alignment's begins anew there.

    Args:
        user: the fine-tuning examples.
        alignment: refusals.
        objective: its switch point moves at every change.

    Source: the two states of Lisa, see `Proximal`.
    """

    def __init__(
        self,
        user: Sequence[Mapping[str, Any]],
        alignment: Sequence[Mapping[str, Any]],
        objective: Proximal,
    ) -> None:
        self.user = user
        self.alignment = alignment
        self.objective = objective
        self.aligns = True

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: Any) -> Any:
        if self.aligns:
            return self.alignment[int(index) % len(self.alignment)]
        return self.user[int(index)]

    def after_step(self, step: int) -> None:
        """To be called with the number of steps done, after each."""
        before = self.aligns
        self.aligns = step % (ALIGNMENT_STEPS + USER_STEPS) < ALIGNMENT_STEPS
        if self.aligns != before:
            self.objective.switch_point = None


@torch.no_grad()
def project_adapters(model: nn.Module, base: nn.Module, threshold: float) -> tuple[int, int]:
    """Project the adapters that point away from the alignment onto what alignment changed.

        V = W_aligned - W_base,  C = V V^T / ||V||_F
        B <- C B   where   cos(C B A, B A) <= threshold

    W_aligned (O, I) is the layer's own weight under the adapter B A, with B (O, R) and A (R, I).
    C is the paper's quick stand-in for a projection: it scales, too.

    Args:
        model: with LoRA adapters on the aligned model; changed in place.
        base: the model that the aligned one was made from, with the same names of weights.
        threshold: largest cosine at which an adapter is projected.

    Returns:
        How many adapters were projected, and how many there are.

    Raises:
        ValueError: base and aligned model do not differ where adapters are.

    Source: Hsu et al., "Safe LoRA: the Silver Lining of Reducing Safety Risks when Fine-tuning
    Large Language Models", NeurIPS 2024 (arXiv 2405.16833), selection by threshold.
    """
    weights = dict(base.named_parameters())
    adapted = {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert adapted, "the model must have LoRA adapters"
    projected = 0
    for path, layer in adapted.items():
        name = path.removeprefix("base_model.model.") + ".weight"
        aligned = layer.get_base_layer().weight  # (O, I)
        change = aligned - weights[name].to(aligned)  # (O, I)
        norm = change.norm()
        if norm == 0:
            raise ValueError(
                f"the base must differ from the aligned model where adapters are, and does not in "
                f"{name}: give the model that the aligned one was made from"
            )
        up, down = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight  # (O, R), (R, I)
        turned = change @ (change.T @ up) / norm  # (O, R)
        cosine = torch.cosine_similarity((turned @ down).flatten(), (up @ down).flatten(), dim=0)
        if cosine <= threshold:
            up.copy_(turned)
            projected += 1
    return projected, len(adapted)
