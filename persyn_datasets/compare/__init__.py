"""Students of several strategies: trained, evaluated, and compared."""
