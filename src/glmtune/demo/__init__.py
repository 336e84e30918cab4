"""`glmtune demo`: a tiny base and rows to train it on."""
