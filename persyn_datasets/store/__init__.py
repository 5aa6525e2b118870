"""What is kept: the journal of everything paid for, models in memory, and the statistics that all
rooms share.
"""
