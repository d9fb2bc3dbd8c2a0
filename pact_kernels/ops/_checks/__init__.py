"""Checks of arguments, where an op is called."""
