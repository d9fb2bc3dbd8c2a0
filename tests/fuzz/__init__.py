"""Damaged files for every reader: the suite reads a few, `python -m tests.fuzz` looks on."""
