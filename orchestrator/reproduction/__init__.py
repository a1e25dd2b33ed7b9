"""The paper's tables: which sweeps they are, their scores, their pages."""
