"""From planned rows to batches."""
