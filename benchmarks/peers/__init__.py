"""What is timed: this package's ops, and what else a user could take in their place."""
