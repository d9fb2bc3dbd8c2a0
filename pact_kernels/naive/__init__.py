"""The oracle: every op as its formula, dense, in any dtype, differentiated by autograd."""
