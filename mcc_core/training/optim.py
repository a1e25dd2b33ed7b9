"""Optimisers over parameter groups, and learning rates with warm-up (docs/method.md)."""

from __future__ import annotations

import math

import torch

from mcc_core.config import OptimConfig
from mcc_core.networks.base import Network


def learning_rate(config: OptimConfig, iteration: int, total: int) -> float:
    """Base learning rate at a 0-based iteration of `total`."""
    if iteration < config.warmup:
        start = config.warmup_start if config.warmup_start_is == "ratio" else config.warmup_start / config.lr
        return config.lr * (1 - (1 - iteration / config.warmup) * (1 - start))
    if config.schedule == "cosine":
        length = config.decay_iterations or max(1, total - config.decay_start)
        done = min(1.0, max(0, iteration - config.decay_start) / length)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (1 - iteration / total) ** config.power


def build_optimizer(network: Network, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the network's parameter groups. Call `set_learning_rate` before each step."""
    groups = [
        {
            "params": list(group.parameters),
            "lr_scale": group.lr_scale,
            "weight_decay": config.weight_decay * group.decay_scale,
        }
        for group in network.parameter_groups(config)
    ]
    if config.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, iteration: int, total: int) -> float:
    """Set every group's rate for a 0-based iteration; returns the base rate."""
    rate = learning_rate(config, iteration, total)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
