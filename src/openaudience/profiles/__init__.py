"""Profiles: which traits hold for whom; the fold, the index by set algebra, expiry."""
