"""Benchmarks: ``python -m benchmarks.NAME [--quick] [--json]``; each prints what it shows."""
