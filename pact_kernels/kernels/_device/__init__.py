"""Device functions that the kernels share, and the nouns of their operands."""
