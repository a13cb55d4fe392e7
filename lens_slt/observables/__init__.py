"""Quantities read off draws."""
