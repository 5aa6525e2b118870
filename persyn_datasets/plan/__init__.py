"""What is known of a build before it spends anything: checks, a first row, the cost."""
