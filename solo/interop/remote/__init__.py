"""Code that is exported with the weights, for `trust_remote_code`. It does not import this package."""
