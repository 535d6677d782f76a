"""Rewards: boxes, answers, the format, the user's own."""
