"""What a user states: recipes, teachers, students, and the errors that say what is wrong
with them.
"""
