"""Who answers which prompt: one strategy a record."""
