"""Home of the Triton kernels, the only place that may import triton; every op runs through `chunked` today."""
