"""The journal and the account, against a plain byte string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.relay.journal import BLOCK_BYTES, Account, Journal

sizes = st.one_of(st.integers(1, 40), st.integers(BLOCK_BYTES // 4 - 2, BLOCK_BYTES + 2))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), sizes),
        st.tuples(st.just("release"), st.integers(0, 200_000)),
        st.tuples(st.just("read"), st.integers(0, 200_000)),
    ),
    max_size=60,
)


@given(steps)
def test_what_is_kept_reads_as_it_was_written(steps):
    account = Account(1 << 20)
    journal = Journal(account)
    truth = b""
    for verb, number in steps:
        if verb == "append":
            piece = bytes((len(truth) + i) % 251 for i in range(number))
            truth += piece
            journal.append(piece)
        elif verb == "release":
            journal.release(number)
        elif journal.start <= number <= journal.end:
            read = journal.read(number, 5000)
            assert truth[number : number + 5000].startswith(read)
            assert bool(read) == (number < len(truth))
        else:
            with pytest.raises(ValueError):
                journal.read(number, 5000)
        assert journal.end == len(truth)
        assert account.used_bytes == journal.held_bytes >= journal.end - journal.start
    journal.close()
    assert account.used_bytes == 0


def test_all_bytes_are_read_in_turn():
    journal = Journal(Account(1 << 20))
    truth = b"".join(bytes([i % 256]) * (i * 37 % 9000 + 1) for i in range(200))
    at = 0
    for i in range(0, len(truth), 777):
        journal.append(truth[i : i + 777])
    read = b""
    while piece := journal.read(at, 4096):
        read += piece
        at += len(piece)
        journal.release(at - 100)
    assert read == truth
    assert journal.held_bytes <= BLOCK_BYTES + 100


def test_small_pieces_cost_about_their_bytes():
    journal = Journal(Account(1 << 20))
    for _ in range(50_000):
        journal.append(b"x")
    assert len(journal._blocks) <= 50_000 // BLOCK_BYTES + 1


class Waits:
    def __init__(self, account, takes=0):
        self.account, self.takes, self.asked = account, takes, 0

    def room(self):
        self.asked += 1
        self.account.take(self.takes)


def test_those_who_wait_are_asked_in_turn_and_only_while_there_is_room():
    account = Account(800)
    account.take(800)
    assert account.full
    first, second = Waits(account, 600), Waits(account)
    account.wait(first)
    account.wait(second)
    account.give(50)
    assert (first.asked, second.asked) == (0, 0)  # above the low mark
    account.give(600)
    assert (first.asked, second.asked) == (1, 0)  # the first has filled it again
    account.give(600)
    assert second.asked == 1
    account.wait(second)
    account.forget(second)
    account.give(100)
    assert second.asked == 1
