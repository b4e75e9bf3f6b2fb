"""What was used of late, by name and bounded, without the stalls of one large table."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Names in a table. One that outgrows its room, or is full of what was taken out, is written anew: 6 ms
# for 87,000 names, in which nobody is answered. Each table more costs those that look at all of them.
EACH = 4096


class Recent(Generic[T]):
    """Names, those used longest ago first to go; in tables by hash, each of which has an order of its own.

    Up to EACH names there is one table, and the order is exact. Of more, one that has to go is the oldest of
    its table, which is nearly as old as the oldest of all.

    Args:
        most: names at once.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        number = 1 << (max(0, most - 1) // EACH).bit_length()
        self._tables: list[OrderedDict[str, T]] = [OrderedDict() for _ in range(number)]
        self._mask = number - 1
        self._size = 0
        self._first = 0

    def __len__(self) -> int:
        return self._size

    def values(self) -> Iterator[T]:
        """What is known of all of them."""
        return (value for table in self._tables for value in table.values())

    def get(self, name: str) -> T | None:
        """What is known of a name, which is not used by that."""
        return self._tables[hash(name) & self._mask].get(name)

    def use(self, name: str) -> T | None:
        """What is known of a name, which now goes last."""
        table = self._tables[hash(name) & self._mask]
        value = table.get(name)
        if value is not None:
            table.move_to_end(name)
        return value

    def put(self, name: str, value: T) -> T | None:
        """Takes a name in, or says something else of it; it goes last. What had to go for it, if so."""
        table = self._tables[hash(name) & self._mask]
        if name in table:
            table.move_to_end(name)
            table[name] = value
            return None
        table[name] = value
        if self._size < self._most:
            self._size += 1
            return None
        return table.popitem(last=False)[1]

    def pop(self, name: str) -> T | None:
        """Takes a name out."""
        value = self._tables[hash(name) & self._mask].pop(name, None)
        if value is not None:
            self._size -= 1
        return value

    def past(self, over: Callable[[T], bool], most: int, near: str | None = None) -> Iterator[tuple[str, T]]:
        """Takes out names whose time is over, oldest first.

        Args:
            over: whether it is, of what is known of a name.
            most: names that are taken out at once.
            near: a name whose table alone is looked at; None looks at all, at another one first each time.

        """
        if near is not None:
            tables = [self._tables[hash(near) & self._mask]]
        else:
            self._first = (self._first + 1) & self._mask
            tables = self._tables[self._first :] + self._tables[: self._first]
        for table in tables:
            while table and most:
                if not over(next(iter(table.values()))):
                    break
                self._size -= 1
                most -= 1
                yield table.popitem(last=False)
