"""Evaluation: playing all questions of a set, and what came of them in numbers."""
