"""The `mcc` command. Command modules import the heavy packages inside their functions, so that help is instant."""

from orchestrator.cli.app import main

__all__ = ["main"]
