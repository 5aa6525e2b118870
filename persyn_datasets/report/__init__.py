"""What came out of a build: its numbers, tables and figures."""
