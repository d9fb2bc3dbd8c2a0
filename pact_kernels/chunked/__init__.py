"""Pure torch with a bounded workspace, on any device: the CPU implementation of every op."""
