"""Loss terms, one small function each, and the filter behind the dense energy."""
