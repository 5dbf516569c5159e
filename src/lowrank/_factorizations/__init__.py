"""The factorizations, and the rank that a tolerance needs."""
