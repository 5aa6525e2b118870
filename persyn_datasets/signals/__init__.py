"""What a response is worth to the student: one signal a file."""
