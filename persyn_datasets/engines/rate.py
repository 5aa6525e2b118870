"""A teacher's limits per minute."""

import time
from collections import deque
from functools import cache

MINUTE = 60.0


class Window:
    """At most so much in any minute. What is spent is a list of one number, so that it can be put
    right later.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._spent: deque[tuple[float, list[int]]] = deque()

    def fits(self, amount: int) -> bool:
        while self._spent and self._spent[0][0] <= time.monotonic() - MINUTE:
            self._spent.popleft()
        spent = sum(amount for _, [amount] in self._spent)
        return not spent or spent + amount <= self.most

    def spend(self, amount: int) -> list[int]:
        self._spent.append((time.monotonic(), [amount]))
        return self._spent[-1][1]


@cache
def window(teacher: str, urls: tuple[str, ...], unit: str, most: int) -> Window:
    """One for all calls in this process: stages ask batch by batch."""
    return Window(most)
