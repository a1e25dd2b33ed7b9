"""Masked Collaborative Contrast for weakly supervised semantic segmentation, in plain PyTorch."""

__version__ = "0.1.0"
