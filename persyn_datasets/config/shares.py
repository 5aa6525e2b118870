"""Shares of what is counted."""

from decimal import Decimal


def part_of(share: float, count: int) -> int:
    """The largest number that is at most this share of so many, as the share is written: 0.29 of
    100 are 29, though their product as floats is 28.999999999999996.
    """
    return int(Decimal(repr(float(share))) * count)
