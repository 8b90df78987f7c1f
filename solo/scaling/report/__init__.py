"""The results of a fit, described once and rendered as JSON, on the terminal and as a page."""
