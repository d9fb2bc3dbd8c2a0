"""The frozen aligned model that the student is held to: its own adapters switched off, or a copy."""

from pact.reference.live import AdaptersOff, FrozenModel, Reference

__all__ = ["AdaptersOff", "FrozenModel", "Reference"]
