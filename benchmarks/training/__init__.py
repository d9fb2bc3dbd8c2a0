"""Whole training steps: the parts of `training_step`."""
