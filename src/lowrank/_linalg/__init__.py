"""Panels, small SVDs, pivots, distributed matrices, and error bounds from samples."""
