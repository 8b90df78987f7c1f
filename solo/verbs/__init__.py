"""The verbs of the command line that are thin over the Python API; help imports nothing heavy."""
