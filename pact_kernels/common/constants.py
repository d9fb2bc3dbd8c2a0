"""Numbers that every implementation of the KL takes from here."""

LEAST_PROBABILITY = 1e-12
"""Clamp of the target inside its logarithm, as in the released implementation."""
LEAST_REST = 1e-6
"""Least mass of the unselected tokens in over="vocabulary"."""
