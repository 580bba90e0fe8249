"""Calls of sites and partners between their answer and the tables: what one call says, and the log that keeps it."""
