"""Kernels, each with its launcher."""
