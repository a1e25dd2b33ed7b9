"""AdamW parameter groups and the polynomial schedule with warm-up (PAPER_NOTES recipe and row 20)."""

from __future__ import annotations

import torch

from mcc_core.config import OptimConfig
from mcc_core.methods.mcc.network import MCCNet


def learning_rate(config: OptimConfig, iteration: int, total: int) -> float:
    """Base learning rate at a 0-based iteration of `total`."""
    if iteration < config.warmup:
        start = config.warmup_start if config.warmup_start_is == "ratio" else config.warmup_start / config.lr
        return config.lr * (1 - (1 - iteration / config.warmup) * (1 - start))
    return config.lr * (1 - iteration / total) ** config.power


def build_optimizer(model: MCCNet, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the encoder at the base rate and everything else at `head_lr_scale` times it.

    Freezes the position table when `config.freeze_pos_embed`. Call `set_learning_rate` before each step.
    """
    if config.freeze_pos_embed and model.encoder.vit.pos_embed is not None:
        model.encoder.vit.pos_embed.requires_grad_(False)
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    known = {id(p) for p in model.encoder.parameters()}
    heads = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": encoder, "lr_scale": 1.0}, {"params": heads, "lr_scale": config.head_lr_scale}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, iteration: int, total: int) -> float:
    """Set every group's rate for a 0-based iteration; returns the base rate."""
    rate = learning_rate(config, iteration, total)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
