"""Who proposes and who stops: TPE, pruning, populations."""
