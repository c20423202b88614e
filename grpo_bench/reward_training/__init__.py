"""A reward model of one's own: a classifier trained on right and wrong answers of the policy before RL."""
