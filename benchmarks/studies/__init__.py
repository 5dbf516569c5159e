"""What is shown: errors beside bounds, tolerances, and published methods."""
