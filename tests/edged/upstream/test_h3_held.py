"""What a paused stream holds comes out as it went in, from memory or disk."""

from hypothesis import given
from hypothesis import strategies as st

from edged.upstream import h3_held
from edged.upstream.h3_held import Held

STEPS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=40), st.just("take"), st.just("put back")),
    max_size=40,
)


@given(STEPS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_order_and_end_are_kept(steps, spills):
    saved = h3_held.MEMORY_BYTES, h3_held._READ_BYTES
    h3_held.MEMORY_BYTES, h3_held._READ_BYTES = 50, 16
    try:
        held = Held()
        sent = received = b""
        for step, spill in zip(steps, spills, strict=False):
            if isinstance(step, bytes):
                sent += step
                held.append(step, False, spill=spill)
            elif held:
                data, last = held.take()
                assert not last
                if step == "put back" and len(data) > 1:
                    held.put_back(data[1:], False)
                    data = data[:1]
                received += data
        held.append(b"!", True, spill=True)
        last = False
        while held:
            assert not last
            data, last = held.take()
            received += data
        assert last
        assert received == sent + b"!"
        assert held._file is None
    finally:
        h3_held.MEMORY_BYTES, h3_held._READ_BYTES = saved


def test_full_and_relaxed(monkeypatch):
    monkeypatch.setattr(h3_held, "MEMORY_BYTES", 10)
    monkeypatch.setattr(h3_held, "FILE_BYTES", 20)
    alone = Held()
    alone.append(b"x" * 11, False, spill=False)
    assert alone.full
    alone.take()
    assert alone.relaxed
    among = Held()
    among.append(b"x" * 11, False, spill=True)
    among.append(b"y" * 9, False, spill=True)
    assert not among.full
    among.append(b"z", False, spill=False)
    assert among.full
    assert not among.relaxed
    among.clear()
    assert among.relaxed
    assert not among


def test_a_full_disk_leaves_it_in_memory(monkeypatch):
    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h3_held, "MEMORY_BYTES", 10)
    monkeypatch.setattr(h3_held.tempfile, "TemporaryFile", refuse)
    held = Held()
    held.append(b"x" * 11, True, spill=True)
    assert held.full
    assert held.take() == (b"x" * 11, True)
