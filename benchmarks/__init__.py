"""What is measured, against whom, and the recorded results."""
