"""Inbound files: their names, decoding, lines, checks and receipts. Knows nothing of storage."""
