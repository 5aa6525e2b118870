"""Prompts and responses as tables: their schema, how they are read, and whether they leak a
benchmark.
"""
