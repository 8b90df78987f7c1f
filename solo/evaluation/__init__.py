"""Tasks answered by generation, held-out losses, metrics, and the report."""
