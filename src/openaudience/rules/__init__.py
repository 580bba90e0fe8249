"""Trait rules: text, tree, canonical text, matcher. Knows nothing of storage."""
