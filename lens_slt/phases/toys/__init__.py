"""Toy models whose phases are known: losses of flat weights for ``sample_function``."""
