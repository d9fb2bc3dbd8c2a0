"""The Triton kernels: what every op runs through on a GPU. The only place that imports triton.

`runtime` runs, interprets or records a launch, `configs` holds every tile shape; `arithmetic` and
`target` are device functions; the other files are a kernel with its launcher, or an op made of them
under the stem that it has in `chunked` and `ops`.
"""
