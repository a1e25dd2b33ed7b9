"""Scoring a checkpoint by protocols, image by image, on one process or many workers."""
