"""Whether a checkpoint folder is complete and undamaged: `glmtune verify`."""
