"""ICMP echo on loopback: raw as root, unprivileged where the host allows, garbage anywhere."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time

import icmplib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.dialer import LineDialer
from policies.model import Endpoint, Kind, Line, Outcome, Path
from probes import echo, icmp
from probes.base import DialError
from probes.icmp import IcmpProbe
from tests.harness.namespace import in_namespace, needs_root

TOKEN = b"12345678"
INET, INET6 = socket.AF_INET, socket.AF_INET6


def path_to(address, line=None, name="e", host=None):
    line = line or Line("cn2", source="127.0.0.2")
    endpoint = Endpoint("u", name, "https", host or "nowhere.invalid", 443, address=address)
    return Path(line, endpoint)


def permitted(kind):
    try:
        socket.socket(INET, kind, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return False
    return True


raw_only = [
    pytest.mark.root,
    pytest.mark.skipif(not permitted(socket.SOCK_RAW), reason="needs CAP_NET_RAW"),
]


# --- messages ---------------------------------------------------------------------------------


def as_reply(family, packet):
    return bytes([0 if family == INET else 129]) + packet[1:]


def ip_header(protocol, payload, options=b""):
    length = 20 + len(options)
    return (
        struct.pack("!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(payload), 0, 0, 64,
                    protocol, 0, b"\x7f\0\0\1", b"\x7f\0\0\2") + options + payload
    )  # fmt: skip


@given(ident=st.integers(0, 65535), sequence=st.integers(0, 65535), token=st.binary(max_size=33))
def test_requests_have_a_right_checksum_and_replies_are_read_back(ident, sequence, token):
    packet = echo.request(INET, ident, sequence, token)
    assert echo._checksum(packet) == 0  # a packet with its checksum sums to nothing
    for family in (INET, INET6):
        own = echo.request(family, ident, sequence, token)
        reply = echo.parse(family, as_reply(family, own), ip_header=False)
        assert reply == echo.Reply(ident, sequence, False, token)
        assert echo.parse(family, own, ip_header=False) is None  # a request is no answer


def test_ip_options_are_skipped():
    packet = as_reply(INET, echo.request(INET, 7, 9, TOKEN))
    for options in (b"", b"\x01" * 8):
        assert echo.parse(INET, ip_header(1, packet, options), ip_header=True).sequence == 9


@pytest.mark.parametrize("code", [0, 1, 3, 13])
def test_unreachable_is_matched_by_the_request_it_quotes(code):
    quoted = ip_header(1, echo.request(INET, 7, 9, TOKEN))
    message = ip_header(1, bytes([3, code, 0, 0, 0, 0, 0, 0]) + quoted)
    assert echo.parse(INET, message, ip_header=True) == echo.Reply(7, 9, True, TOKEN)
    short = ip_header(1, bytes([3, code, 0, 0, 0, 0, 0, 0]) + quoted[:28])
    assert echo.parse(INET, short, ip_header=True) == echo.Reply(7, 9, True, None)
    six = bytes([0x60, 0, 0, 0, 0, 16, 58, 64]) + bytes(32) + echo.request(INET6, 7, 9, TOKEN)
    message = bytes([1, code, 0, 0, 0, 0, 0, 0]) + six
    assert echo.parse(INET6, message, ip_header=False) == echo.Reply(7, 9, True, TOKEN)


def test_what_others_did_is_not_for_us():
    tcp = ip_header(6, b"\x08" + bytes(20))
    message = ip_header(1, bytes([3, 3, 0, 0, 0, 0, 0, 0]) + tcp)
    assert echo.parse(INET, message, ip_header=True) is None
    exceeded = ip_header(1, bytes([11, 0, 0, 0, 0, 0, 0, 0]) + ip_header(1, bytes(8)))
    assert echo.parse(INET, exceeded, ip_header=True) is None


@given(packet=st.binary(max_size=120), family=st.sampled_from([INET, INET6]), header=st.booleans())
def test_garbage_never_raises(packet, family, header):
    echo.parse(family, packet, ip_header=header)
    echo.own_request(family, packet)


# --- sockets ----------------------------------------------------------------------------------


def with_probe(test, dialer=None, **kwargs):
    async def main():
        own = dialer or LineDialer()
        probe = IcmpProbe(own, **kwargs)
        try:
            return await test(probe)
        finally:
            await probe.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(main())


class TestRaw:
    pytestmark = raw_only

    @pytest.mark.parametrize(
        ("address", "line"),
        [
            ("127.0.0.1", Line("cn2", source="127.0.0.2")),
            ("127.0.0.1", Line("any")),
            ("127.0.0.1", Line("bgp", interface="lo")),
            ("127.0.0.1", Line("hk", mark=17)),
            ("::1", Line("v6", source="::1")),
            ("::1", Line("any")),
        ],
    )
    def test_echo_over_every_binding(self, address, line):
        async def test(probe):
            return await probe.run(path_to(address, line), timeout_s=2)

        (sample,) = with_probe(test)
        assert (sample.kind, sample.outcome) == (Kind.ICMP, Outcome.OK)
        assert 0 < sample.rtt_s < 1

    def test_many_in_flight_on_one_socket_none_mixed_up(self):
        async def test(probe):
            got = []
            paths = [path_to(f"127.0.1.{i}", name=f"e{i}") for i in range(100)]
            for round_ in range(1, 4):
                for path in paths:
                    probe.start(path, timeout_s=2, report=got.append)
                async with asyncio.timeout(5):
                    while len(got) < 100 * round_:
                        await asyncio.sleep(0.005)
            return got, len(probe._channels)

        got, sockets = with_probe(test)
        assert sockets == 1
        assert all(s.outcome is Outcome.OK for s in got)
        assert all(sum(s.path == f"cn2>u/e{i}" for s in got) == 3 for i in range(100))

    def test_a_blocked_loop_does_not_look_like_a_slow_line(self):
        async def test(probe):
            got = []
            await probe.run(path_to("127.0.0.1"), timeout_s=2)
            probe.start(path_to("127.0.0.1"), timeout_s=2, report=got.append)
            time.sleep(0.15)  # noqa: ASYNC251 - the blockage under test
            while not got:
                await asyncio.sleep(0.005)
            return got[0]

        assert with_probe(test).rtt_s < 0.1  # the kernel noted when the answer came

    def test_what_was_sent_is_announced_and_what_was_not_is_not(self):
        announced = []

        async def test(probe):
            (sample,) = await probe.run(path_to("127.0.0.1"), timeout_s=2)
            await probe.run(path_to("203.0.113.1"), timeout_s=2)
            return sample

        sample = with_probe(test, sent=lambda *args: announced.append(args))
        assert announced == [(sample.path, Kind.ICMP, sample.sent_at)]

    def test_silence_ends_at_the_deadline(self):
        async def test(probe):
            await probe.run(path_to("127.0.0.1"), timeout_s=2)
            (channel,) = probe._channels.values()
            channel._ident ^= 1  # answers to what is sent now come, but are not ours
            channel_ident = channel._ident
            path = path_to("127.0.0.1")
            waiting = asyncio.create_task(probe.run(path, timeout_s=0.1))
            await asyncio.sleep(0)
            channel._ident = channel_ident ^ 1
            return await waiting

        (sample,) = with_probe(test)
        assert (sample.outcome, sample.rtt_s) == (Outcome.TIMEOUT, None)

    def test_forged_answers_are_not_taken(self):
        """Right identifier and sequence, but wrong token or wrong sender."""

        async def test(probe):
            await probe.run(path_to("127.0.0.1"), timeout_s=2)
            (channel,) = probe._channels.values()
            got = []
            channel.send("p", "127.0.0.1", 2, got.append)
            sequence = channel._sequence
            for reply, source in (
                (echo.Reply(channel._ident, sequence, False, b"????????"), "127.0.0.1"),
                (echo.Reply(channel._ident, sequence, False, channel._token), "127.0.0.9"),
                (echo.Reply(channel._ident ^ 1, sequence, False, channel._token), "127.0.0.1"),
                (echo.Reply(channel._ident, sequence ^ 1, False, channel._token), "127.0.0.1"),
                (echo.Reply(channel._ident, sequence, False, None), "127.0.0.1"),
            ):
                channel._settle(reply, source, None)
            assert got == []
            channel._settle(echo.Reply(channel._ident, sequence, True, None), "10.0.0.1", None)
            return got

        (sample,) = with_probe(test)
        assert sample.outcome is Outcome.UNREACHABLE

    def test_no_route_and_no_address_blame_the_line_at_once(self):
        async def test(probe):
            (no_route,) = await probe.run(path_to("203.0.113.1"), timeout_s=5)
            gone = path_to("127.0.0.1", Line("gone", source="10.71.1.2"))
            (no_address,) = await probe.run(gone, timeout_s=5)
            assert probe._channels == {}  # what lost its binding is opened anew next time
            (back,) = await probe.run(path_to("127.0.0.1"), timeout_s=5)
            return no_route.outcome, no_address.outcome, back.outcome

        assert with_probe(test) == (Outcome.UNREACHABLE, Outcome.UNREACHABLE, Outcome.OK)

    def test_names_are_resolved_over_the_line_and_kept(self):
        class Names(LineDialer):
            asked = 0

            async def resolve(self, line, host, *, timeout_s=5.0):
                self.asked += 1
                if host == "bad.test":
                    raise DialError(Outcome.DNS, "no such name")
                return ["127.0.0.1"]

        dialer = Names()

        async def test(probe):
            got = []
            good, bad = path_to(None, host="good.test"), path_to(None, name="b", host="bad.test")
            async with asyncio.timeout(5):
                for count in (1, 2, 3):
                    probe.start(good, timeout_s=2, report=got.append)
                    while len(got) < count:
                        await asyncio.sleep(0.001)
            assert dialer.asked == 1
            probe.start(bad, timeout_s=2, report=got.append)
            while len(got) < 4:
                await asyncio.sleep(0.001)
            return [s.outcome for s in got]

        assert with_probe(test, dialer) == [Outcome.OK] * 3 + [Outcome.DNS]

    def test_reload_closes_what_no_line_needs(self):
        async def test(probe):
            old = path_to("127.0.0.1")
            new = path_to("127.0.0.1", Line("cn2", source="127.0.0.3"))
            await probe.run(old, timeout_s=2)
            await probe.run(new, timeout_s=2)
            probe.retain([new])
            assert [key[0] for key in probe._channels] == [new.line]
            return await probe.run(new, timeout_s=2)

        assert with_probe(test)[0].outcome is Outcome.OK


def test_where_nothing_is_permitted_one_warning_says_what_to_do(monkeypatch):
    def denied(privileged):
        raise icmplib.SocketPermissionError(privileged)

    monkeypatch.setattr(icmp, "ICMPv4Socket", denied)
    monkeypatch.setattr(icmp, "ICMPv6Socket", denied)
    warnings = []

    async def test(probe):
        got = []
        for _ in range(3):
            probe.start(path_to("127.0.0.1"), timeout_s=1, report=got.append)
            got += await probe.run(path_to("::1", Line("any")), timeout_s=0.05)
        return got

    assert with_probe(test, warn=warnings.append) == []
    (warning,) = warnings
    assert "net.ipv4.ping_group_range" in warning
    assert "CAP_NET_RAW" in warning


INSIDE = """
import asyncio, os, encodings.idna
from edged.dialer import LineDialer
from policies.model import Endpoint, Line, Path
from probes.icmp import IcmpProbe
import uvloop
os.setgroups([]); os.setgid(65534); os.setuid(65534)

def path(address):
    return Path(Line("any"), Endpoint("u", address, "https", "x", 1, address=address))

async def main():
    probe = IcmpProbe(LineDialer())
    for address in ("127.0.0.1", "::1", "10.9.0.2", "10.8.0.1", "10.9.0.2", "10.8.0.1"):
        for s in await probe.run(path(address), timeout_s=2):
            print(address, s.outcome.value, s.rtt_s is not None)
    print([c._raw for c in probe._channels.values()])
    await probe.close()

({loop}.run)(main())
"""


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_unprivileged_sockets_and_router_errors_in_a_namespace_of_its_own(loop):
    """In a fresh network namespace: ICMP datagram sockets for a user without capabilities, an
    answer, and an unreachable route that answers with an ICMP error."""
    setup = (
        "ip link set lo up && sysctl -qw net.ipv4.ping_group_range='0 2147483647' && "
        # The peer routes 10.8/16 nowhere and says so: the error comes from another host.
        "ip link add v0 type veth peer name v1 && ip netns add {ns} && "
        "ip link set v1 netns {ns} && "
        "ip addr add 10.9.0.1/24 dev v0 && ip link set v0 up && "
        "ip -n {ns} addr add 10.9.0.2/24 dev v1 && ip -n {ns} link set v1 up && "
        "ip netns exec {ns} sysctl -qw net.ipv4.ip_forward=1 && "
        "ip -n {ns} route add unreachable 10.8.0.0/16 && "
        'ip route add 10.8.0.0/16 via 10.9.0.2 && "$@"; '
        "status=$?; ip netns del {ns}; exit $status"
    ).format(ns=f"edged-icmp-{os.getpid()}")
    assert in_namespace(setup, INSIDE.format(loop=loop)) == [
        "127.0.0.1 ok True",
        "::1 ok True",
        "10.9.0.2 ok True",
        "10.8.0.1 unreachable False",
        "10.9.0.2 ok True",
        "10.8.0.1 unreachable False",
        "[False, False]",
    ]


def test_every_errno_of_a_lost_binding_is_also_no_route():
    assert icmp._BINDING_LOST <= icmp._NO_ROUTE
    assert errno.ENOBUFS not in icmp._NO_ROUTE
