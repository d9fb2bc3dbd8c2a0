"""The frozen aligned model: the student with its adapters off, or a copy."""

from pact.reference.live import AdaptersOff, FrozenModel, Reference

__all__ = ["AdaptersOff", "FrozenModel", "Reference"]
