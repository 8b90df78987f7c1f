"""The layouts we know, by name."""
