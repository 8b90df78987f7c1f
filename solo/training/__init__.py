"""Loss terms, optimizer, training step, trainer, checkpoints, metrics."""
