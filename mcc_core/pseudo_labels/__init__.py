"""From class activation maps to labels: CAMs, thresholds, refinement, CRF."""
