"""Storage: immutable files, Delta tables, generations of the index. Knows nothing of traits or of what files mean."""
