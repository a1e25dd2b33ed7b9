"""A sweep as a page: what storage has of it, and the sections that tell it."""
