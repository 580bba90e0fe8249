"""Export runs: who is in a destination's files, generation, delivery, baselines, schedule, history (40 §4-10)."""
