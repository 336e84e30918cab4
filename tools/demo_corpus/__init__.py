"""Generator of the demo's texts: advertisements to train on, and the conversations that its base was trained on."""
