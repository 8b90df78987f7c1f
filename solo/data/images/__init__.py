"""From an image file to patches."""
