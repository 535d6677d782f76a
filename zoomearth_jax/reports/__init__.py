"""Pictures and pages of episodes and runs."""
