"""The HTTP edge: ID syncs, events, opt-outs and the collection script (20-identity-and-realtime)."""
