"""Protocols, scores, predictions and pictures of a trained network."""
