"""The forgetting probe: the same general questions to a base and to a model tuned from it."""
