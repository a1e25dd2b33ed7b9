"""A trained network in the formats of other programs, checked against itself."""
