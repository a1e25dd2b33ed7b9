"""Backbones, encoders and heads, and what any network must offer."""
