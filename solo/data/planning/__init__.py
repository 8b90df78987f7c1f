"""Which documents share which row of which batch."""
