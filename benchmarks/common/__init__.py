"""What several benchmarks share: measuring, files, tables, plots."""
