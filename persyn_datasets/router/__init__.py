"""The router: a plain sequence classifier whose labels are the teachers."""
