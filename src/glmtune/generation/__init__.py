"""Generation: sampling, the decode loop, chat, batches."""
