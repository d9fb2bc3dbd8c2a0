"""Home of the Triton kernels, the only place that may import triton.

Every op runs through `chunked` today.
"""
