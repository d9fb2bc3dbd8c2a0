"""How a kernel is configured and launched."""
