"""Sources that need no download: their records are generated, or come with installed packages."""
