"""Segments over traits: merged sets of profiles, evaluation, overlaps, estimates (30 §8-12)."""
