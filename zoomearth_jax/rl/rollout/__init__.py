"""The rollout: prompts and pictures into caches, sampled turns, tools."""
