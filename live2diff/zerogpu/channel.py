"""Letters from the process of the page to the one that has the GPU, through memory that both share.

The memory is made before the fork and has no name that anybody could ask for. Each slot belongs to one
visitor at a time and holds two mailboxes, one for camera frames and one for wishes; of several letters in a
mailbox only the newest is there. There is no lock, because a process that dies takes a lock with it: a letter
is written into the half that nobody reads and then announced, and whoever was overtaken while reading sees
that the checksum is wrong and reads again.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Sequence

LARGEST_FRAME = 1280 * 1280 * 3  # bytes
LARGEST_WISHES = 256 * 1024
LETTER = struct.Struct("=II")  # checksum, length
STAMP = struct.Struct("=QQ")  # owner and number, part of what the checksum is of
WORD = 8
PAGE = mmap.PAGESIZE


class Mailbox:
    """Holds one letter, the newest; one process writes, another reads.

    Letters are numbered from 1 on. Each is for an owner, a number that differs for each visitor: whoever
    reads for another owner finds nothing.
    """

    def __init__(self, memory: memoryview, capacity: int) -> None:
        """`memory` has `Mailbox.size(capacity)` bytes, all zero at first."""
        self.capacity = capacity
        self._newest = memory[:WORD].cast("Q")
        half = LETTER.size + capacity
        self._halves = [memory[WORD + i * half : WORD + (i + 1) * half] for i in range(2)]
        self._used = [0, 0]  # bytes, known to the writer

    @staticmethod
    def size(capacity: int) -> int:
        return -(-(WORD + 2 * (LETTER.size + capacity)) // PAGE) * PAGE

    @property
    def newest(self) -> int:
        """The number of the last letter, 0 before the first."""
        return self._newest[0]

    def write(self, owner: int, *parts: bytes | memoryview) -> int:
        """Put a letter in, made of these parts; its number.

        Raises:
            ValueError: it is too long.
        """
        length = sum(len(part) for part in parts)
        if length > self.capacity:
            raise ValueError(f"This has {length} bytes, the limit is {self.capacity}.")
        number = self.newest + 1
        half, end = self._halves[number % 2], LETTER.size
        for part in parts:
            half[end : end + len(part)] = part
            end += len(part)
        self._used[number % 2] = max(self._used[number % 2], end)
        checksum = zlib.crc32(half[LETTER.size : end], zlib.crc32(STAMP.pack(owner, number)))
        LETTER.pack_into(half, 0, checksum, length)
        self._newest[0] = number  # last: from here on it is there
        return number

    def read(self, owner: int, after: int = 0) -> tuple[int, bytes] | None:
        """The newest letter and its number; None if it is not newer than `after`, or not for this owner, or
        was overtaken by another while it was read."""
        number = self.newest
        if number <= after:
            return None
        half = self._halves[number % 2]
        checksum, length = LETTER.unpack_from(half)
        letter = bytes(half[LETTER.size : LETTER.size + min(length, self.capacity)])
        is_whole = zlib.crc32(letter, zlib.crc32(STAMP.pack(owner, number))) == checksum
        return (number, letter) if is_whole and number == self.newest else None

    def clear(self) -> None:
        """Zero everything that was ever written, for the next owner."""
        self._newest[0] = 0
        for half, used in zip(self._halves, self._used, strict=True):
            half[:used] = bytes(used)
        self._used = [0, 0]


class Slot:
    """What one visitor has of the shared memory.

    Attributes:
        frames, wishes: the two mailboxes.
    """

    HEADER = PAGE

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[: 2 * WORD].cast("Q")  # whose it is; the last frame taken out, and for whom
        wishes = self.HEADER + Mailbox.size(LARGEST_FRAME)
        self.frames = Mailbox(memory[self.HEADER : wishes], LARGEST_FRAME)
        self.wishes = Mailbox(memory[wishes:], LARGEST_WISHES)

    @classmethod
    def size(cls) -> int:
        return cls.HEADER + Mailbox.size(LARGEST_FRAME) + Mailbox.size(LARGEST_WISHES)

    @property
    def owner(self) -> int:
        """Whose it is, 0 for nobody's."""
        return self._words[0]

    def hand_over(self, owner: int) -> None:
        """From now on it is this owner's, and nothing of the former one's is left in it."""
        self._words[0] = owner
        self.frames.clear()
        self.wishes.clear()

    def note_taken(self, owner: int, number: int) -> None:
        """Said by the reader: this frame is being worked on."""
        self._words[1] = (owner & 0xFFFFFFFF) << 32 | number

    def taken(self, owner: int) -> int:
        """The number of the last frame that was taken out for this owner, 0 before the first."""
        word = self._words[1]
        return word & 0xFFFFFFFF if word >> 32 == owner & 0xFFFFFFFF else 0


def make_slots(count: int) -> Sequence[Slot]:
    """Slots in memory that this process shares with all that are forked from it later."""
    memory = memoryview(mmap.mmap(-1, count * Slot.size()))
    return [Slot(memory[i * Slot.size() : (i + 1) * Slot.size()]) for i in range(count)]
