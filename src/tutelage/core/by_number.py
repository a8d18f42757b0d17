"""Sequences that read an item when it is asked for by its number."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item = TypeVar("Item")


class ByNumber(Sequence[Item]):
    """What a list makes of numbers (from the end, too) and slices, over `__len__` and `read`."""

    noun = "item"

    @abstractmethod
    def read(self, number: int) -> Item:
        """The item `number`, from 0 to below the length."""

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self.read(number) for number in range(*at.indices(len(self)))]
        number = at + len(self) if at < 0 else at
        if not 0 <= number < len(self):
            raise IndexError(f"{self.noun} {at} of {len(self)}")
        return self.read(number)
