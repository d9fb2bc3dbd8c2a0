"""What is kept and shown: the CSV, targets and verdicts, tables and pictures."""
