"""PPO, GRPO and their relatives, compared fairly on verifiable mathematics."""

__version__ = "0.1.0"
