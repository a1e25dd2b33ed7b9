"""Numbers out of results: leaderboards, statistics, ablations, figures. Pure functions."""
