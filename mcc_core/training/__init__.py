"""The training loop of one trial, its optimiser and its running means."""
