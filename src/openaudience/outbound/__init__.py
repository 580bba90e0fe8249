"""What leaves the platform: templates, file sets, delivery. Knows nothing of how audiences are computed (40)."""
