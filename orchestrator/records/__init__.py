"""What lies in storage: events, checkpoints, leases, results, and under which keys."""
