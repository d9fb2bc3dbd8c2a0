"""What is measured: cases of an op and a shape, and the sets of them for each device."""
