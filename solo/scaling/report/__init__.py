"""What a fit found, described once and rendered as JSON, on the terminal and as a page."""
