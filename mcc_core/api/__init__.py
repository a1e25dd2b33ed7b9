"""The public Python API: what `mcc_core` itself offers by name."""
