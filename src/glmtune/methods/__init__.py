"""How a model is tuned: prepared, saved and loaded again."""
