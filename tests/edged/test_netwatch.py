"""Links, addresses and routes that change: recorded messages, and a namespace that really does."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path as File

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import netlink, netwatch
from edged.netlink import Address, DefaultRoute, Link
from edged.netwatch import Interfaces, NetWatch
from policies.model import Line
from tests.harness.namespace import in_namespace, needs_root

# As the kernel sent them (6.18) for: ip link add v0 type veth peer name v1; ip addr add
# 10.9.0.1/24 dev v0; ip link set v0 up; ip route add default via 10.9.0.2.
RECORDED = File(__file__).with_name("netlink_messages.txt")


def recorded(name):
    for line in RECORDED.read_text().splitlines():
        key, _, text = line.partition(" ")
        if key == name:
            return bytes.fromhex(text)
    raise KeyError(name)


def test_recorded_messages_are_read():
    assert list(netlink.parse(recorded("link_up"))) == [Link(3, "v0", True, False)]
    assert list(netlink.parse(recorded("link_down"))) == [Link(3, "v0", False, False)]
    assert list(netlink.parse(recorded("link_gone"))) == [Link(3, "v0", False, True)]
    assert list(netlink.parse(recorded("address_new"))) == [Address(3, "10.9.0.1", False)]
    assert list(netlink.parse(recorded("address_gone"))) == [Address(3, "10.9.0.1", True)]
    assert list(netlink.parse(recorded("address6_new"))) == [Address(3, "fd09::1", False)]
    assert list(netlink.parse(recorded("default_new"))) == [DefaultRoute(3, False)]
    assert list(netlink.parse(recorded("default_gone"))) == [DefaultRoute(3, True)]
    assert list(netlink.parse(recorded("route_new"))) == []  # to one network only
    assert list(netlink.parse(recorded("link_up") + recorded("address_new"))) == [
        Link(3, "v0", True, False),
        Address(3, "10.9.0.1", False),
    ]


@given(st.binary(max_size=200), st.integers(0, 60))
def test_garbage_is_no_fact_and_breaks_nothing(garbage, cut):
    list(netlink.parse(garbage))
    list(netlink.parse(recorded("link_up")[:cut]))
    kind = struct.pack("=IHHII", 16 + len(garbage), netlink.NEWADDR, 0, 0, 0)
    list(netlink.parse(kind + garbage))
    netlink.way_out(garbage)


# -- what it means for lines -------------------------------------------------------------------

ETH0 = Line("a", interface="eth0")
SOURCE = Line("b", source="10.1.0.2")
MARK = Line("c", mark=17)


def host():
    interfaces = Interfaces()
    for fact in (
        Link(1, "lo", True, False),
        Link(2, "eth0", True, False),
        Link(3, "eth1", True, False),
        Address(1, "127.0.0.1", False),
        Address(2, "10.0.0.2", False),
        Address(2, "fe80::1", False),
        Address(3, "10.1.0.2", False),
    ):
        assert interfaces.take(fact)
    interfaces.ways_out = {17: 3}
    return interfaces


def test_a_line_is_lost_with_its_interface_or_address():
    interfaces = host()
    assert [interfaces.fault(line) for line in (ETH0, SOURCE, MARK)] == [None] * 3
    interfaces.take(Link(2, "eth0", False, False))
    assert interfaces.fault(ETH0) == "interface eth0 is down"
    interfaces.take(Link(2, "eth0", True, False))
    interfaces.take(Address(2, "10.0.0.2", True))
    assert interfaces.fault(ETH0) == "interface eth0 has lost its address"
    interfaces.take(Address(2, "10.0.0.3", False))
    assert interfaces.fault(ETH0) is None
    interfaces.take(Link(2, "eth0", False, True))
    assert interfaces.fault(ETH0) == "interface eth0 does not exist"
    interfaces.take(Link(3, "eth1", False, False))
    assert interfaces.fault(SOURCE) == "interface eth1 with address 10.1.0.2 is down"
    interfaces.take(Address(3, "10.1.0.2", True))
    assert interfaces.fault(SOURCE) == "address 10.1.0.2 is on no interface"
    assert interfaces.fault(MARK) is None


def test_an_interface_that_never_had_an_address_may_do_without():
    interfaces = Interfaces()
    interfaces.take(Link(2, "eth0", True, False))
    assert interfaces.fault(ETH0) is None
    interfaces.take(Address(2, "fe80::1", False))
    interfaces.take(Address(2, "fe80::1", True))
    assert interfaces.fault(ETH0) is None


def test_all_of_127_8_is_on_the_loopback_and_addresses_may_be_spelt_in_any_way():
    interfaces = host()
    assert interfaces.fault(Line("lab", source="127.71.1.2")) is None
    interfaces.take(Address(3, "fd09::1", False))
    assert interfaces.fault(Line("six", source="FD09:0:0::1")) is None


def test_only_what_carries_a_line_concerns_it():
    interfaces = host()
    container = Link(9, "veth1234", True, False)
    route = DefaultRoute(3, False)
    assert not any(interfaces.concerns(container, line) for line in (ETH0, SOURCE, MARK))
    assert interfaces.concerns(Link(2, "eth0", False, False), ETH0)
    assert interfaces.concerns(Address(2, "10.0.0.9", False), ETH0)
    assert not interfaces.concerns(Address(2, "10.0.0.9", False), SOURCE)
    assert interfaces.concerns(Address(3, "10.1.0.2", True), SOURCE)
    assert interfaces.concerns(Link(3, "eth1", False, False), SOURCE)
    assert interfaces.concerns(Link(3, "eth1", False, False), MARK)
    assert not interfaces.concerns(Link(2, "eth0", False, False), MARK)
    assert interfaces.concerns(route, SOURCE)
    assert interfaces.concerns(route, MARK)
    assert not interfaces.concerns(route, ETH0)


def test_news_that_change_nothing_are_none():
    interfaces = host()
    assert not interfaces.take(Link(2, "eth0", True, False))
    assert not interfaces.take(Address(2, "10.0.0.2", False))
    assert not interfaces.take(Address(2, "10.7.7.7", True))


# -- in a loop ---------------------------------------------------------------------------------


def test_sleep_is_known_by_the_boot_clock(monkeypatch):
    lead = [100.0]
    monkeypatch.setattr(netwatch, "_boot_lead_s", lambda: lead[0])
    monkeypatch.setattr(netwatch, "SLEEP_POLL_S", 0.01)

    async def main():
        changes = []
        watch = NetWatch(lambda *_: None, changes.append)
        watch.start([Line("x", source="127.0.0.1")])
        await asyncio.sleep(0.03)
        assert not changes
        lead[0] += 3600.0
        async with asyncio.timeout(5):
            while not changes:
                await asyncio.sleep(0.01)
        watch.close()
        assert changes == [(("x",), "this host slept for 3600 s", True)]

    asyncio.run(main())


def test_an_address_of_this_host_that_no_interface_has_is_no_fault():
    async def main():
        lost = []
        watch = NetWatch(lambda *it: lost.append(it), lambda _: None)
        watch.start([Line("x", source="127.71.9.9"), Line("y", source="203.0.113.7")])
        watch.close()
        assert lost == [("y", "address 203.0.113.7 is on no interface")]

    asyncio.run(main())


INSIDE = """
import asyncio, subprocess, sys
from edged.netwatch import NetWatch
from policies.model import Line
def ip(*args): subprocess.run(["ip", *args], check=True)
async def main():
    lost, changed = asyncio.Queue(), asyncio.Queue()
    watch = NetWatch(lambda *it: lost.put_nowait(it), changed.put_nowait)
    watch.start([Line("i", interface="v0"), Line("s", source="10.9.0.1"), Line("m", mark=5),
                 Line("o", interface="lo")])
    async def get(queue):
        async with asyncio.timeout(10): return await queue.get()
    ip("link", "set", "v0", "down")
    print(*sorted([await get(lost), await get(lost)]))
    ip("link", "set", "v0", "up")
    seen = set()
    while not {"i", "s"} <= seen: seen |= set((await get(changed)).lines)
    print(*sorted(seen - {"m"}))
    ip("addr", "del", "10.9.0.1/24", "dev", "v0")
    print(*sorted([await get(lost), await get(lost)]))
    ip("addr", "add", "10.9.0.1/24", "dev", "v0")
    seen = set()
    while not {"i", "s"} <= seen: seen |= set((await get(changed)).lines)
    ip("route", "add", "default", "via", "10.9.0.2")
    seen = set()
    while not {"i", "s", "m"} <= seen: seen |= set((await get(changed)).lines)
    print("o" in seen, lost.empty())
    watch.close()
asyncio.run(main())
"""


@pytest.mark.root
@needs_root
def test_a_namespace_that_changes():
    setup = (
        "ip link set lo up && ip link add v0 type veth peer name v1 && ip link set v1 up && "
        "ip addr add 10.9.0.1/24 dev v0 && ip link set v0 up && "
        'exec "$@"'
    )
    assert in_namespace(setup, INSIDE) == [
        "('i', 'interface v0 is down') ('s', 'interface v0 with address 10.9.0.1 is down')",
        "i s",
        "('i', 'interface v0 has lost its address') ('s', 'address 10.9.0.1 is on no interface')",
        "False True",
    ]


def test_dumps_tell_of_the_loopback():
    interfaces = netwatch._dump()
    assert interfaces.fault(Line("l", interface="lo")) in (None, "interface lo is down")
    assert set(netwatch._ways_out({0})) == {0}
    assert socket.AF_NETLINK
