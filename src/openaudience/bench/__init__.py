"""The benchmark: receipt-shaped data, our whole ingest, and other engines doing the heart of it (OP-50, OP-51)."""
