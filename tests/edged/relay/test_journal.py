"""The journal and the account, against a plain byte string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.relay.journal import BLOCK_BYTES, FLOOR_BYTES, MOST_BLOCK_BYTES, Account, Journal, Share

sizes = st.one_of(
    st.integers(1, 40),
    st.integers(BLOCK_BYTES // 4 - 2, BLOCK_BYTES + 2),
    st.integers(MOST_BLOCK_BYTES - 2, 3 * MOST_BLOCK_BYTES),
)
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
    journal = Journal(Share(account))
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
    journal = Journal(Share(Account(1 << 20)))
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
    journal = Journal(Share(Account(1 << 20)))
    for _ in range(50_000):
        journal.append(b"x")
    assert len(journal._blocks) <= 50_000 // BLOCK_BYTES + 1


def test_what_was_read_of_a_large_piece_is_given_back():
    share = Share(Account(1 << 20))
    journal = Journal(share)
    data = bytes(range(256)) * 1024
    journal.append(data)
    journal.append(b"more")
    journal.release(200_000)
    assert share.used_bytes <= len(data) - 200_000 + 4 + MOST_BLOCK_BYTES
    got = b""
    while piece := journal.read(200_000 + len(got), 50_000):
        got += piece
    assert got == data[200_000:] + b"more"


def test_what_one_client_holds_is_not_taken_from_others():
    account = Account(8000)
    greedy, others = Share(account), [Share(account) for _ in range(3)]
    assert greedy.room == 6000
    greedy.take(9000)
    assert greedy.room < 0
    assert greedy.scarce
    for number, share in enumerate(others, 2):
        share.take(1)
        assert account.sharers == number
    # A quarter is for those that hold little.
    assert [share.room for share in others] == [499] * 3
    greedy.give(9000)
    assert (account.sharers, account.used_bytes) == (3, 3)
    assert others[0].room == 5997
    for share in others:
        share.give(1)
    assert (account.sharers, account.used_bytes) == (0, 0)


def test_flows_that_nobody_reads_leave_as_much_to_the_next():
    share = Share(Account(64 << 20))
    for _ in range(100):
        share.take(share.allowance(4 << 20))
    assert share.allowance(4 << 20) == FLOOR_BYTES
    held = Share(Account(64 << 20))
    flows = [0] * 50
    for _ in range(2000):  # in turns, as all come at once
        for at, size in enumerate(flows):
            if size < held.allowance(4 << 20):
                flows[at] += 16384
                held.take(16384)
    assert max(flows) - min(flows) <= 16384
    assert held.allowance(4 << 20) >= min(flows) - 16384
    assert sum(flows) < 48 << 20
