"""Files that are shipped beside exported weights, for `trust_remote_code`. They import nothing of this package."""
