"""Phases of singular models: free energies, crossings, diagrams, toy models with known phases."""
