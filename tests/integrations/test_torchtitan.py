"""The loss against a stand-in of torchtitan's interface, which is that of 0.3.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.torch_version import TorchVersion

from tests.integrations.torchtitan_interface import CompileConfig, above_the_stand_in

titan = above_the_stand_in()
HIDDEN, VOCABULARY = 24, 131
TOKENS = torch.tensor(40)
"""The labelled tokens of a step of which a batch is one part."""


class Linear(nn.Linear):
    """torchtitan's own kind of linear layer has nn.Linear's forward."""


class Decoder(nn.Module):
    """What the trainer makes of a model: states, and a head that the forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.lm_head = nn.LayerNorm(HIDDEN), head()

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states)


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """States and labels, one position in three ignored."""
    g = torch.Generator().manual_seed(0)
    states = torch.randn(*shape, HIDDEN, generator=g).requires_grad_()
    labels = torch.randint(0, VOCABULARY, shape, generator=g)
    labels.view(-1)[::3] = -100
    return states, labels


def head(bias: bool = False) -> nn.Linear:
    torch.manual_seed(1)
    return Linear(HIDDEN, VOCABULARY, bias=bias)


def dense(states: Tensor, labels: Tensor, layer: nn.Linear) -> Tensor:
    """The sum that torchtitan's own loss returns, in double precision."""
    logits = layer.double()(states.double()).flatten(0, -2)
    return nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")


def built(layer: nn.Module, compile_config: Any = None, **settings: Any) -> Any:
    loss_fn = titan.FusedCrossEntropyLoss.Config(**settings).build(compile_config=compile_config)
    loss_fn.set_lm_head(layer)
    return loss_fn


@pytest.mark.parametrize("shape", [(2, 9), (18,)])  # 0.3.0's, and one line of tokens
@pytest.mark.parametrize("drop_ignored", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_sum_over_the_tokens_of_the_step(
    shape: tuple[int, ...], drop_ignored: bool, bias: bool
) -> None:
    states, labels = batch(*shape)
    layer = head(bias)
    loss_fn = built(layer, drop_ignored=drop_ignored)
    loss, metrics = loss_fn(states, labels, TOKENS, positions=torch.zeros(shape))
    assert metrics == {} and loss.dtype == torch.float32
    (0.37 * loss).backward()  # what comes in is multiplied, as by a scaler
    double, expected = states.detach().double().requires_grad_(), head(bias)
    truth = dense(double, labels, expected) / TOKENS
    (0.37 * truth).backward()
    assert float(loss) == pytest.approx(float(truth), rel=1e-5)
    torch.testing.assert_close(states.grad, double.grad.float(), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-6)


def test_validation_has_the_sum() -> None:
    """The validator gives no token count, and divides by itself."""
    states, labels = batch(2, 9)
    with torch.no_grad():
        loss, _ = built(head())(states, labels)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(dense(states, labels, head())), rel=1e-5)


def test_a_batch_without_labels_is_0() -> None:
    states, labels = batch(2, 9)
    loss, _ = built(head())(states, torch.full_like(labels, -100), TOKENS)
    loss.backward()
    assert float(loss) == 0.0 and float(states.grad.abs().max()) == 0.0


def test_it_is_compiled_where_the_trainer_says() -> None:
    states, labels = batch(2, 9)
    asked = CompileConfig(enable=True, backend="aot_eager")
    compiled = built(head(), compile_config=asked)
    plain = built(head(), compile_config=CompileConfig(enable=True, components=("model",)))
    assert compiled.fn is not plain.fn
    ours, theirs = compiled(states, labels, TOKENS)[0], plain(states, labels, TOKENS)[0]
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_what_cannot_be_honoured_is_refused() -> None:
    class Capped(Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden).tanh()

    states, labels = batch(2, 9)
    fresh = titan.FusedCrossEntropyLoss.Config().build()
    with pytest.raises(ValueError, match="call set_lm_head first"):
        fresh(states, labels)
    for other in (Capped(HIDDEN, VOCABULARY), nn.Identity()):
        with pytest.raises(ValueError, match=f"got {type(other).__name__}, which has a forward"):
            fresh.set_lm_head(other)
    with pytest.raises(TypeError, match="num_chunks"):
        titan.FusedCrossEntropyLoss.Config(num_chunks=8)
    with pytest.raises(TypeError, match="advantages"):  # a term that the loss does not have
        built(head())(states, labels, TOKENS, advantages=states)
    part = head()
    part.weight = nn.Parameter(part.weight[:70].detach())  # as under tensor parallelism
    with pytest.raises(ValueError, match=r"whole, \(131, 24\), .* got Parameter \(70, 24\)"):
        built(part)(states, labels)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    """A process group of this process, which FSDP2 needs."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.13",
    reason="before, a group of modules whose head is left out does not gather its norm again",
)
def test_a_sharded_head_is_gathered_and_left_sharded(one_process: Any) -> None:
    """torchtitan shards norm and head as one unit; `test_distributed` has two processes."""
    states, labels = batch(2, 9)
    model = Decoder()
    fully_shard([model.norm, model.lm_head], mesh=one_process)
    fully_shard(model, mesh=one_process)
    loss_fn = built(model.lm_head)
    with torch.no_grad():
        loss_fn(model(states), labels)
    assert isinstance(model.lm_head.weight, DTensor)
    loss_fn(model(states), labels, TOKENS)[0].backward()
    whole = Decoder()
    built(whole.lm_head)(whole(states), labels, TOKENS)[0].backward()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert isinstance(ours, DTensor)
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)
    tensor_parallel = head()
    tensor_parallel.weight = nn.Parameter(
        distribute_tensor(tensor_parallel.weight.detach(), one_process, [Shard(0)])
    )
    with pytest.raises(ValueError, match="got DTensor .* set tensor_parallel_degree=1"):
        built(tensor_parallel)(states, labels)
