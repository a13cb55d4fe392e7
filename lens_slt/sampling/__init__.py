"""Sampling of the local posterior of each component's weights."""
