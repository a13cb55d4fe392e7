"""All families that are measured."""

from __future__ import annotations

from benchmarks.families.family import Family
from benchmarks.families.llama_like import LLAMA_LIKE
from benchmarks.families.older import OLDER

FAMILIES: tuple[Family, ...] = (*OLDER, *LLAMA_LIKE)
