"""What runs beside the training loop in a trial: its log, its checkpoints, its lock."""
