"""What every implementation shares: chunks, kept rows, requests and results, constants."""
