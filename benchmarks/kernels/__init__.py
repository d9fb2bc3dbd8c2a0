"""What the compiler makes of the kernels: the parts of `kernel_report`."""
