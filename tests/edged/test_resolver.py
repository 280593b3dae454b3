"""DNS per line against a real server on loopback; expiry in virtual time."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import dns.rcode
import pytest

from edged.dnsquery import Server
from edged.resolver import STALE_WAIT_S, Resolver, _Key
from edged.system_dns import SystemFiles
from policies.model import Line, Outcome
from probes.base import DialError
from tests.harness.nameserver import NameServer

HOST = "api.test"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def scenario(test, *, hosts="", resolv_conf="", lookup=None, tmp_path=None):
    """Run ``test(server, line, resolver, clock)``; the line asks the server from 127.0.0.2."""

    async def main():
        files = SystemFiles(hosts="/nonexistent", resolv_conf="/nonexistent")
        if tmp_path is not None:
            (tmp_path / "hosts").write_text(hosts)
            (tmp_path / "resolv.conf").write_text(resolv_conf)
            files = SystemFiles(
                hosts=str(tmp_path / "hosts"), resolv_conf=str(tmp_path / "resolv.conf")
            )
        async with NameServer() as server:
            server.zone[HOST, "A"] = ["203.0.113.7"]
            clock = Clock()
            resolver = Resolver(files=files, lookup=lookup, clock=clock)
            line = Line("cn2", source="127.0.0.2", dns=(server.server,))
            try:
                await test(server, line, resolver, clock)
            finally:
                await resolver.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def failure(resolver, line, host=HOST, **kwargs):
    with pytest.raises(DialError) as caught:
        await resolver.resolve(line, host, **kwargs)
    assert caught.value.outcome in (Outcome.DNS, Outcome.NO_NAME)
    return caught.value.detail


def test_asks_the_lines_own_server_from_the_lines_own_address():
    async def test(server, line, resolver, _):
        assert list(await resolver.resolve(line, "API.test.")) == ["203.0.113.7"]
        # The line has an IPv4 source address: nobody needs AAAA.
        assert server.asked == [(HOST, "A", "udp", "127.0.0.2")]

    scenario(test)


def test_answers_are_kept_for_their_ttl_per_line_and_host():
    async def test(server, line, resolver, clock):
        other = Line("bgp", source="127.0.0.3", dns=line.dns)
        for _ in range(3):
            await resolver.resolve(line, HOST)
            await resolver.resolve(other, HOST)
        assert [asked[3] for asked in server.asked] == ["127.0.0.2", "127.0.0.3"]
        clock.now += 61
        server.zone[HOST, "A"] = ["203.0.113.8"]
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.8"]

    scenario(test)


@pytest.mark.parametrize(("ttl", "kept_s", "gone_s"), [(0, 0.9, 1.1), (86400, 3599.9, 3600.1)])
def test_the_ttl_is_held_between_a_second_and_an_hour(ttl, kept_s, gone_s):
    async def test(server, line, resolver, clock):
        server.ttl = ttl
        await resolver.resolve(line, HOST)
        clock.now += kept_s
        resolver_asked = len(server.asked)
        await resolver.resolve(line, HOST)
        clock.now += gone_s - kept_s
        server.zone[HOST, "A"] = ["203.0.113.9"]
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.9"]
        assert resolver_asked == 1

    scenario(test)


def test_an_answer_in_use_is_refreshed_before_it_expires():
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        server.zone[HOST, "A"] = ["203.0.113.8"]
        clock.now += 50
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]  # at once
        async with asyncio.timeout(5):
            while list(resolver.cached(line, HOST)) != ["203.0.113.8"]:
                await asyncio.sleep(0.005)

    scenario(test)


def test_many_callers_make_one_question():
    async def test(server, line, resolver, _):
        answers = await asyncio.gather(*(resolver.resolve(line, HOST) for _ in range(50)))
        assert all(list(a) == ["203.0.113.7"] for a in answers)
        assert len(server.asked) == 1

    scenario(test)


def test_both_families_are_asked_side_by_side_and_a_slow_one_is_not_awaited_for_long():
    async def test(server, _, resolver, __):
        line = Line("any", dns=(server.server,))
        server.zone[HOST, "AAAA"] = ["2001:db8::7"]
        assert list(await resolver.resolve(line, HOST)) == ["2001:db8::7", "203.0.113.7"]
        server.zone["b.test", "A"] = ["203.0.113.9"]
        server.dead_types = {"AAAA"}
        start = time.monotonic()
        assert list(await resolver.resolve(line, "b.test")) == ["203.0.113.9"]
        assert time.monotonic() - start < 0.5  # a retry would take longer

    scenario(test)


def test_a_lost_question_is_asked_again():
    async def test(server, line, resolver, _):
        server.drop_first = 1
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]
        assert len(server.asked) == 2

    scenario(test)


def test_the_next_server_is_asked_when_one_refuses_or_is_dead():
    async def test(server, line, resolver, _):
        async with NameServer("127.0.0.54") as broken:
            broken.rcode = dns.rcode.SERVFAIL
            both = Line("cn2", source="127.0.0.2", dns=(broken.server, server.server))
            start = time.monotonic()
            assert list(await resolver.resolve(both, HOST)) == ["203.0.113.7"]
            assert time.monotonic() - start < 0.5
            broken.rcode, broken.dead = None, True
            assert await resolver.resolve(both, HOST)

    scenario(test)


def test_truncated_answers_are_fetched_over_tcp_on_the_line():
    async def test(server, line, resolver, _):
        server.truncate = True
        server.zone[HOST, "A"] = [f"203.0.113.{i}" for i in range(1, 200)]
        assert len(await resolver.resolve(line, HOST)) == 199
        assert [(a[2], a[3]) for a in server.asked] == [("udp", "127.0.0.2"), ("tcp", "127.0.0.2")]

    scenario(test)


def test_a_server_without_edns_is_asked_without():
    async def test(server, line, resolver, _):
        server.refuse_edns = True
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]

    scenario(test)


def test_forged_answers_and_garbage_are_skipped():
    async def test(server, line, resolver, _):
        server.forge = True
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]

    scenario(test)


def test_aliases_are_followed():
    async def test(server, line, resolver, _):
        server.zone["www.test", "CNAME"] = HOST
        assert list(await resolver.resolve(line, "www.test")) == ["203.0.113.7"]

    scenario(test)


def test_missing_names_and_missing_types_are_told_apart_and_remembered():
    async def test(server, line, resolver, clock):
        assert "nope.test does not exist" in await failure(resolver, line, "nope.test")
        server.zone["v6.test", "AAAA"] = ["2001:db8::1"]
        detail = await failure(resolver, line, "v6.test")
        assert "has no address that 127.0.0.2 can reach" in detail
        asked = len(server.asked)
        await failure(resolver, line, "nope.test")
        assert len(server.asked) == asked
        clock.now += 301
        server.zone["nope.test", "A"] = ["203.0.113.1"]
        assert await resolver.resolve(line, "nope.test")

    scenario(test)


def test_dead_dns_is_told_within_the_deadline():
    async def test(server, line, resolver, _):
        server.dead = True
        start = time.monotonic()
        detail = await failure(resolver, line, timeout_s=0.3)
        assert time.monotonic() - start < 2
        assert detail.startswith(f"line cn2: no answer for {HOST} within 0.3 s from name server")
        assert server.server in detail

    scenario(test)


def test_failures_are_kept_for_a_second_so_that_a_dead_server_is_not_hammered():
    async def test(server, line, resolver, clock):
        server.rcode = dns.rcode.REFUSED
        assert "REFUSED" in await failure(resolver, line)
        asked = len(server.asked)
        await failure(resolver, line)
        assert len(server.asked) == asked
        server.rcode = None
        clock.now += 1.1
        assert await resolver.resolve(line, HOST)

    scenario(test)


def test_the_old_answer_serves_while_dns_is_broken_and_is_not_asked_for_each_time():
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        server.rcode = dns.rcode.SERVFAIL
        clock.now += 3600
        assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]
        asked = len(server.asked)
        assert await resolver.resolve(line, HOST)
        assert len(server.asked) == asked
        clock.now += 31
        assert await resolver.resolve(line, HOST)
        assert len(server.asked) > asked
        clock.now += 86400
        await failure(resolver, line)  # older than a day: no longer

    scenario(test)


def test_silent_dns_delays_the_old_answer_by_half_a_second_at_most():
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        server.dead = True
        clock.now += 61
        start = time.monotonic()
        assert list(await resolver.resolve(line, HOST, timeout_s=30)) == ["203.0.113.7"]
        assert time.monotonic() - start < 3

    scenario(test)


def test_silent_dns_is_waited_for_once_and_not_by_each_who_asks():
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        server.dead = True
        clock.now += 61
        first = asyncio.ensure_future(resolver.resolve(line, HOST))
        await asyncio.sleep(0)
        clock.now += STALE_WAIT_S
        second = asyncio.ensure_future(resolver.resolve(line, HOST))
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {second}
        assert list(await second) == list(await first) == ["203.0.113.7"]

    scenario(test)


def test_a_name_that_is_gone_beats_the_old_answer():
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        del server.zone[HOST, "A"]
        clock.now += 61
        assert "does not exist" in await failure(resolver, line)

    scenario(test)


def test_literals_pass_and_the_wrong_family_is_explained():
    async def test(server, line, resolver, _):
        assert list(await resolver.resolve(line, "203.0.113.5")) == ["203.0.113.5"]
        assert list(await resolver.resolve(Line("any"), "[2001:db8::5]")) == ["2001:db8::5"]
        assert "families differ" in await failure(resolver, line, "2001:db8::5")
        assert server.asked == []

    scenario(test)


def test_etc_hosts_comes_first_and_is_read_again_when_it_changes(tmp_path):
    async def test(server, line, resolver, clock):
        assert list(await resolver.resolve(line, HOST)) == ["127.0.0.99"]
        assert list(await resolver.resolve(line, "alias.test")) == ["127.0.0.99"]
        assert list(await resolver.resolve(line, "localhost")) == ["127.0.0.1"]
        assert server.asked == []
        (tmp_path / "hosts").write_text("127.0.0.98 api.test\n# 127.0.0.97 alias.test\n")
        clock.now += 6
        assert list(await resolver.resolve(line, HOST)) == ["127.0.0.98"]
        await failure(resolver, line, "alias.test")

    scenario(test, tmp_path=tmp_path, hosts="127.0.0.99 API.test alias.test # lab\nnonsense\n")


def test_a_bound_line_without_servers_asks_the_systems_over_its_binding(tmp_path):
    async def test(server, _, resolver, __):
        # resolv.conf has no ports: prove the choice and the family filter, not the packet.
        def tried(line):
            return [(str(way.server), way.via) for way in resolver._ways(line)[:3]]

        route = "by the system's route"
        assert tried(Line("cn2", source="127.0.0.2")) == [
            *(("127.0.0.53", via) for via in ("from 127.0.0.2", route)),
            ("[fd00::53]", route),
        ]
        assert tried(Line("v6", source="::1")) == [
            *(("127.0.0.53", route), ("[fd00::53]", "from ::1"), ("[fd00::53]", route)),
        ]
        # A stub on loopback answers nobody who comes from a real line.
        assert tried(Line("real", source="10.71.1.2"))[:2] == [
            ("127.0.0.53", route),
            ("[fd00::53]", route),
        ]

    scenario(
        test,
        tmp_path=tmp_path,
        resolv_conf="search test\nnameserver 127.0.0.53\nnameserver fd00::53\noptions ndots:1\n",
    )


class OneServer(SystemFiles):
    """A resolv.conf with a port."""

    def __init__(self, server):
        super().__init__(hosts="/nonexistent", resolv_conf="/nonexistent")
        self.server = server

    def servers(self, now):
        return (Server.parse(self.server),)


@pytest.mark.parametrize("unreached", ["at once", "in silence"])
def test_a_system_server_that_the_binding_does_not_reach_is_asked_by_the_systems_route(unreached):
    async def test(server, _, __, clock):
        def bind(sock, line):
            if unreached == "at once":
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
            sock.bind((line.source, 0))

        server.deaf_to = {"127.0.0.2"}
        resolver = Resolver(files=OneServer(server.server), clock=clock, bind=bind)
        try:
            line = Line("cn2", source="127.0.0.2")
            assert list(await resolver.resolve(line, HOST)) == ["203.0.113.7"]
            assert {asked[3] for asked in server.asked} - {"127.0.0.2"} == {"127.0.0.1"}
            own = Line("cn2", source="127.0.0.2", dns=(server.server,))
            del server.asked[:]
            await failure(resolver, own, timeout_s=1.0)
            assert {asked[3] for asked in server.asked} <= {"127.0.0.2"}
        finally:
            await resolver.close()

    scenario(test)


def test_a_server_that_cannot_be_reached_from_the_line_is_told_apart():
    async def test(server, _, resolver, __):
        # Nothing leaves this host from a loopback address: EINVAL, before any packet.
        line = Line("cn2", source="127.0.0.2", dns=("192.0.2.53",))
        told = "name server 192.0.2.53 cannot be reached from 127.0.0.2 (Invalid argument)"
        assert told in await failure(resolver, line)

    scenario(test)


def test_a_dead_server_is_told_once_while_old_answers_serve_and_once_when_it_is_back(caplog):
    async def test(server, line, resolver, clock):
        async def later():
            clock.now += 61
            await resolver.resolve(line, HOST)
            await resolver._fly(_Key(line, HOST)).question
            return [(r.levelname, r.getMessage()) for r in caplog.records]

        await resolver.resolve(line, HOST)
        await server.__aexit__()  # nobody listens: refused
        where = f"name server {server.server}"
        told = [
            (
                "WARNING",
                f"line cn2: {where}: Connection refused: known names keep the addresses known "
                "from before, for up to a day",
            )
        ]
        for _ in range(3):
            assert await later() == told
        assert resolver.outages.of("cn2") == f"{where}: Connection refused"
        assert resolver.outages.of("bgp") is None
        await server.__aenter__()
        told.append(("INFO", f"line cn2: {where} answers again"))
        assert await later() == told
        assert resolver.outages.of("cn2") is None

    caplog.set_level("INFO", "edged.resolver")
    scenario(test)


def test_a_name_that_the_server_refuses_is_told_apart_from_a_dead_server(caplog):
    async def test(server, line, resolver, clock):
        await resolver.resolve(line, HOST)
        server.rcode = dns.rcode.SERVFAIL
        clock.now += 61
        await resolver.resolve(line, HOST)
        server.rcode = None
        server.zone["b.test", "A"] = ["203.0.113.9"]
        await resolver.resolve(line, "b.test")
        assert [r.getMessage() for r in caplog.records] == [
            f"line cn2: name server {server.server}: SERVFAIL: {HOST} keeps the addresses known "
            "from before, for up to a day"
        ]

    caplog.set_level("INFO", "edged.resolver")
    scenario(test)


def test_an_unbound_line_uses_the_systems_resolver():
    looked_up = []

    async def lookup(host):
        looked_up.append(host)
        if host == "gone.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "later.test":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ("2001:db8::1", "203.0.113.1")

    async def test(_, __, resolver, clock):
        line = Line("default")
        for _ in range(2):
            assert list(await resolver.resolve(line, HOST)) == ["2001:db8::1", "203.0.113.1"]
        assert looked_up == [HOST]
        assert "does not exist" in await failure(resolver, line, "gone.test")
        assert "Temporary failure" in await failure(resolver, line, "later.test")

    scenario(test, lookup=lookup)


def test_a_hanging_system_resolver_holds_nobody_beyond_the_deadline():
    async def lookup(host):
        await asyncio.Event().wait()

    async def test(_, __, resolver, ___):
        detail = await failure(resolver, Line("default"), timeout_s=0.1)
        assert "the system's resolver" in detail

    scenario(test, lookup=lookup)


def test_the_real_system_resolver_knows_localhost():
    from edged.system_dns import getaddrinfo

    assert set(asyncio.run(getaddrinfo("localhost"))) & {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("text", "server", "shown"),
    [
        ("1.1.1.1", Server("1.1.1.1"), "1.1.1.1"),
        ("1.1.1.1:5353", Server("1.1.1.1", 5353), "1.1.1.1:5353"),
        ("2001:db8::1", Server("2001:db8::1"), "[2001:db8::1]"),
        ("[2001:db8::1]:5353", Server("2001:db8::1", 5353), "[2001:db8::1]:5353"),
    ],
)
def test_name_servers_are_read_and_shown(text, server, shown):
    assert Server.parse(text) == server
    assert str(server) == shown
