"""The Triton kernels: what operators run through on a GPU. The only place that imports triton.

A file here is the operator of that name, as in `chunked`. Beneath them: `_kernels`, each a kernel
with its launcher; `_device`, functions that run on the card and the operands that they take;
`_launch`, tile shapes, tuning, and how a launch is run, interpreted or recorded.
"""
