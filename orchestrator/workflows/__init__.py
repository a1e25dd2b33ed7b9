"""What commands do from beginning to end: run a sweep, control it, compare networks, score again."""
