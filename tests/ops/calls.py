"""Which of the package's operators a piece of code calls."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Records the package's own operators and their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    @property
    def names(self) -> list[str]:
        """The operators called, in order."""
        return [func._schema.name for func, _ in self.seen]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pact_kernels":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))
