"""A seeded zoo of foreign models, and the exact refined LLCs of their components."""

from benchmarks.zoo.entries import Case, ModelCase, ZooEntry, zoo
from benchmarks.zoo.functions import FunctionCase
from benchmarks.zoo.truth import Effort, Truth, truths

__all__ = ["Case", "Effort", "FunctionCase", "ModelCase", "Truth", "ZooEntry", "truths", "zoo"]
