"""Rollout, rewards, objective and learner."""
