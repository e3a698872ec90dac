"""Archives by Ray Data and verdicts by Ray Serve."""
