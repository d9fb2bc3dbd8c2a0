"""The tests' CPU tensors on a GPU: each launch is copied there, compiled, run, and copied back.

So every test of the interpreter is a test of the compiled kernel too where a GPU is present.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from pact_kernels.kernels import _kernels
from pact_kernels.kernels._launch import configs, runtime


def launch_on(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, launches on CPU tensors run on `device`."""
    target = runtime.target_of(torch.empty(0, device=device))
    original = runtime.launch

    def launch(
        kernel: Any,
        grid: tuple[int, ...],
        options: runtime.Options,
        cost: runtime.Cost,
        **arguments: Any,
    ) -> None:
        if any(tensor.is_meta for tensor in runtime.tensors(arguments.values())):
            original(kernel, grid, options, cost, **arguments)  # it is recorded
            return
        if 0 in grid:
            return
        copies = Copies(device)
        moved = {name: copies.of(value) for name, value in arguments.items()}
        try:
            original(kernel, grid, options, cost, **moved)
        except OutOfResources as error:
            pytest.skip(f"a tile of another target does not fit this card: {error}")
        copies.bring_back()

    for module in list(launchers()):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(configs, "is_interpreted", lambda tensor: False)
    monkeypatch.setattr(runtime, "_interpreted_as", target)


def launchers() -> list[Any]:
    """The modules that launch kernels."""
    from tests.kernels import device as device_functions

    names = (name for _, name, _ in pkgutil.iter_modules(_kernels.__path__))
    modules = [import_module(f"{_kernels.__name__}.{name}") for name in names]
    return [device_functions, *(module for module in modules if hasattr(module, "launch"))]


class Copies:
    """Whole storages on another device, so that strides, offsets and what lies between survive."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def of(self, value: Any) -> Any:
        """A tensor or descriptor on the device; anything else as it is."""
        if isinstance(value, TensorDescriptor):
            return TensorDescriptor(
                self.of(value.base), value.shape, value.strides, value.block_shape
            )
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.of, value))
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        pair = self.storages.get(storage.data_ptr())
        if pair is None:
            copy = torch.UntypedStorage(storage.nbytes(), device=self.device)
            copy.copy_(storage)
            pair = self.storages[storage.data_ptr()] = (storage, copy)
        empty = torch.empty(0, dtype=value.dtype, device=self.device)
        return empty.set_(pair[1], value.storage_offset(), value.shape, value.stride())

    def bring_back(self) -> None:
        """Whatever was written."""
        for storage, copy in self.storages.values():
            storage.copy_(copy)
