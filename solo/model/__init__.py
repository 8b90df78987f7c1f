"""The network, as pure functions of arrays and parameters. Nothing here reads files."""
