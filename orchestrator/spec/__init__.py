"""The schemas of what users write: sweeps, spaces, schedulers, budgets, tables."""
