"""What the network computes: pure functions of arrays and parameters. Knows no files."""
