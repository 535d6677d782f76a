"""Training runs: how they start, checkpoints, metrics, and how they end."""
