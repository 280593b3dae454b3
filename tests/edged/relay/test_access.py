"""Who may do what at the relay's door, in virtual time."""

import hashlib

import pytest

from edged.relay.flow import State
from edged.relay.tokens import Client, Register

from .fakes import ok
from .test_server import TARGET, A, B, House, make_client


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("https://other.example.com/", "GET"),
        ("http://api.example.com/", "GET"),
        ("https://api.example.com:8443/", "GET"),
        ("https://169.254.169.254/", "GET"),
        ("https://0xa9fea9fe/", "GET"),
        ("https://[::ffff:127.0.0.1]/", "GET"),
        ("https://10.0.0.1/", "GET"),
        ("api.example.com:22", "CONNECT"),
        ("127.0.0.1:443", "CONNECT"),
    ],
)
def test_targets_off_the_list_are_refused(target, method):
    house = House()
    refused = house.flow("POST", ("edged-target", target), ("edged-method", method))
    assert refused.status == 403
    assert refused.headers[b"edged-unprocessed"] == b"?1"
    assert house.inner == []


def test_what_came_through_here_before_is_refused():
    house = House()
    assert house.flow("POST", TARGET, ("via", "1.1 edge, 2.0 hk-1")).status == 508
    assert house.inner == []


STRANGE = [
    ("POST", f"/.well-known/edged/flow/{A}"),
    ("GET", f"/.well-known/edged/flow/{A}"),
    ("DELETE", f"/.well-known/edged/flow/{A}"),
    ("HEAD", f"/.well-known/edged/flow/{A}"),
    ("POST", "/.well-known/edged/pulse"),
    ("GET", "/"),
    ("OPTIONS", "*"),
    ("TRACE", "/"),
    ("CONNECT", ""),
    ("POST", "/.well-known/edged/flow/x"),
]


@pytest.mark.parametrize("token", ["", "wrong", "token-on", "token-onee"])
def test_strangers_see_one_and_the_same_404(token):
    house = House()
    house.flow("POST", TARGET)
    answers = {
        (r.status, tuple(sorted(r.headers.items())), r.received, r.ended)
        for method, path in STRANGE
        for r in [house.ask(method, path, TARGET, token=token)]
    }
    assert len(answers) == 1
    ((status, headers, body, ended),) = answers
    assert (status, body, ended) == (404, b"Not Found\n", "end")
    assert not [1 for name, value in headers if b"edged" in name + value]
    assert house.relay.strangers == len(STRANGE)
    assert len(house.inner) == 1


def test_the_same_work_is_done_for_every_stranger(monkeypatch):
    house = House()
    house.flow("POST", TARGET)
    counted = []
    for name in ("sha256", "blake2b"):
        real = getattr(hashlib, name)
        monkeypatch.setattr(
            hashlib, name, lambda *a, _n=name, _r=real, **k: counted.append(_n) or _r(*a, **k)
        )
    work = []
    for token in ("", "wrong", "token-tw0"):
        for method, path in STRANGE:
            counted.clear()
            house.ask(method, path, token=token)
            work.append(tuple(counted))
    assert len(set(work)) == 1


def test_an_id_of_another_client_is_nothing():
    house = House()
    house.flow("POST", TARGET)
    house.inner[0].responder.head(ok())
    house.inner[0].responder.data(b"secret")
    for method in ("GET", "HEAD", "PATCH"):
        assert house.flow(method, token="token-two").status == 404
    assert house.flow("DELETE", token="token-two").status == 204
    assert not house.inner[0].left
    # That was a flow of their own, which they gave up before it began.
    assert house.flow("POST", TARGET, token="token-two").status == 410
    theirs = house.flow("POST", TARGET, token="token-two", flow_id=B)
    mine = house.flow("POST", TARGET, flow_id=B)
    assert len(house.inner) == 3
    house.inner[1].responder.head(ok())
    house.inner[1].responder.data(b"theirs")
    assert (theirs.received, mine.received) == (b"theirs", b"")


def test_known_clients_get_404_for_other_paths():
    house = House()
    for path in ("/", "/.well-known/edged/flow/", "/.well-known/edged/flow/" + "A" * 32):
        assert house.ask("GET", path).status == 404
    assert house.flow("PUT").status == 405
    assert house.ask("GET", "/.well-known/edged/pulse").status == 404


def test_limits_of_one_client_leave_the_other_alone():
    house = House(make_client(flows=3, requests_per_s=5.0), make_client("two", "token-two"))
    said = [house.flow("POST", TARGET, flow_id=f"{n:032x}").status for n in range(20)]
    assert said[:3] == [None] * 3
    assert set(said[3:10]) == {429}
    assert set(said[10:]) == {429}
    assert len(house.inner) == 3
    assert house.flow("POST", TARGET, token="token-two").status is None
    assert len(house.inner) == 4


def test_a_draining_relay_takes_nothing_new():
    house = House()
    house.flow("POST", TARGET)
    house.relay.draining = True
    refused = house.flow("POST", TARGET, flow_id=B)
    assert refused.status == 503
    assert refused.headers[b"edged-unprocessed"] == b"?1"
    house.inner[0].responder.head(ok())
    assert house.flow("GET").status == 200


def test_clients_that_are_taken_off_the_list_lose_all():
    house = House()
    mine, theirs = house.flow("POST", TARGET), house.flow("POST", TARGET, token="token-two")
    pulse = house.ask("POST", "/.well-known/edged/pulse", length=None)
    house.relay.configure(Register([make_client("two", "token-two")]))
    assert (mine.ended, theirs.ended, pulse.ended) == ("abort", None, "abort")
    assert house.inner[0].left
    assert house.flow("GET").status == 404
    assert house.flow("GET").received == b"Not Found\n"


def test_a_revoked_token_ends_what_it_may_have_begun():
    house = House()
    reader = house.flow("POST", TARGET)
    house.relay.configure(Register([make_client(token="token-new")]))
    assert reader.ended == "abort"
    assert house.flow("POST", TARGET).status == 404
    assert house.flow("POST", TARGET, token="token-new", flow_id=B).status is None


def test_a_target_that_is_taken_off_the_list_loses_its_flows():
    house = House(make_client(allow=("api.example.com", "other.example.com")))
    stays = house.flow("POST", TARGET)
    ends = house.flow("POST", ("edged-target", "https://other.example.com/"), flow_id=B)
    house.relay.configure(Register([make_client(allow=("api.example.com",))]))
    assert (stays.ended, ends.ended) == (None, "abort")
    assert [inner.left for inner in house.inner] == [False, True]
    again = house.flow("POST", ("edged-target", "https://other.example.com/"), flow_id="c" * 32)
    assert again.status == 403


def test_a_token_more_ends_nothing():
    house = House(make_client())
    reader = house.flow("POST", TARGET)
    old = make_client()
    both = frozenset([*old.tokens, hashlib.sha256(b"next").digest()])
    house.relay.configure(Register([Client("one", both, frozenset(), old.allow, old.limits)]))
    assert reader.ended is None
    house.inner[0].responder.head(ok())
    assert house.flow("GET", token="next").status == 200
    assert house.inner[0].responder.state is State.STREAMING
