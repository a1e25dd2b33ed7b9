"""Folders and buckets behind one interface, and the outbox that waits for them."""
