"""The public ops, a file each; beneath them `_operators` (registration) and `_checks`."""
