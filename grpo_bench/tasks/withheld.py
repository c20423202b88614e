"""Whose questions and answers are passed on: those that the project makes up itself, and no others."""

# tasks whose questions are others' or one's own: what holds them is not committed (.gitignore), and sent to no server
WITHHELD = ("gsm8k", "math", "custom")
