"""Between a visitor's process and the one that has the GPU: the newest letter, whole, to its owner."""

import multiprocessing

import pytest

from live2diff.zerogpu.channel import LARGEST_FRAME, Slot, make_slots


def test_of_several_letters_the_newest_is_read_and_never_half_of_one():
    (slot,) = make_slots(1)
    owner, count, size = 7, 3000, 20_000

    def write() -> None:
        for number in range(1, count + 1):
            slot.frames.write(owner, bytes([number % 251]) * size)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    last, seen = 0, 0
    while last < count:
        letter = slot.frames.read(owner, last)
        if letter is not None:
            number, data = letter
            assert number > last and len(data) == size and set(data) == {number % 251}
            last, seen = number, seen + 1
        assert process.is_alive() or slot.frames.newest == count
    process.join()
    assert 0 < seen <= count and slot.frames.read(owner, last) is None


def test_a_slot_is_read_by_its_owner_alone_and_zeroed_for_the_next():
    (slot,) = make_slots(1)
    slot.hand_over(1)
    slot.frames.write(1, b"secret")
    slot.note_taken(1, 1)
    assert slot.frames.read(2) is None and slot.taken(2) == 0
    assert slot.frames.read(1) == (1, b"secret") and slot.taken(1) == 1
    with pytest.raises(ValueError, match="limit"):
        slot.frames.write(1, bytes(LARGEST_FRAME + 1))
    slot.hand_over(2)
    assert slot.frames.read(1) is None and slot.frames.newest == 0
    assert not any(any(half) for half in slot.frames._halves)
    assert Slot.size() * 10 < 110e6  # what ten visitors may take at most
