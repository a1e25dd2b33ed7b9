"""Whether a machine and its storage are in order, and what can go."""
