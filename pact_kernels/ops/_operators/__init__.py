"""Registration with torch.library and autograd, beneath the public functions."""
