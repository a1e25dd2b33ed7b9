"""Running the trials of a plan with Ray: in which order, how many, what to do when one dies."""
