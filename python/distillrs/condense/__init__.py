"""Fewer examples: a synthetic set is moved until a signal measured on it agrees with the same on the real set."""
