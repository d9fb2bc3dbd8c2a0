"""Runs that are ended at any moment and gone on with: `make soak`, and tests of the suite."""
