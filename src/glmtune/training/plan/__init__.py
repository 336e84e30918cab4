"""The memory plan: what a run will need, traced from the real code on tensors without memory."""
