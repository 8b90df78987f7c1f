"""Loss, optimizer, stages, step, loop, checkpoints, metrics."""
