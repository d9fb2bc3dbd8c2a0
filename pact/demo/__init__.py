"""The small demonstration: its data, and the run that shows what PACT keeps."""
