"""Tasks answered by generation, their metrics, and the report."""
