"""Runs: who may write, in which order, and what a crash leaves (design 2.5)."""
