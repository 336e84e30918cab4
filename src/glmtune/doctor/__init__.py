"""Whether this machine can train: `glmtune doctor`."""
