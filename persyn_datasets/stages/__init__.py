"""The six stages: Generate, Score, Rank, Pairify, Route, Synthesize."""
