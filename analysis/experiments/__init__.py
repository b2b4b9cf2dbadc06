"""What studies and benchmarks share: command lines, records, timing, tables, files that are written whole."""
