"""Who an ID belongs to: forms of IDs, the ID dictionary and the mapping store."""
