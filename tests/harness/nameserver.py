"""A name server on loopback that does what a test tells it to: answer, truncate, lie, stay dead."""

from __future__ import annotations

import asyncio
import contextlib

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """``zone[(name, "A")] = [addresses]``; names in no key are NXDOMAIN. UDP and TCP, one port."""

    def __init__(self, address="127.0.0.53", port=0):
        self.address = address
        self.port = port
        self.zone = {}
        self.ttl = 60
        self.asked = []
        """(name, type, transport, client address)"""
        self.dead = False
        self.dead_types = set()
        self.deaf_to = set()
        """Client addresses that get no answer."""
        self.drop_first = 0
        self.truncate = False
        self.refuse_edns = False
        self.rcode = None
        self.forge = False
        self.delay_s = {}

    @property
    def server(self):
        return f"{self.address}:{self.port}"

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve_tcp, self.address, self.port)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(
            lambda: _Udp(self), local_addr=(self.address, self.port)
        )
        return self

    async def __aexit__(self, *_):
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def reply(self, wire, transport, client):
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, rdtype, transport, client))
        if self.dead or rdtype in self.dead_types or client in self.deaf_to:
            return None, 0
        if self.drop_first > 0:
            self.drop_first -= 1
            return None, 0
        reply = dns.message.make_response(query)
        if self.refuse_edns and query.edns >= 0:
            reply = dns.message.make_response(query, our_payload=0)
            reply.use_edns(False)
            reply.set_rcode(dns.rcode.FORMERR)
        elif self.rcode is not None:
            reply.set_rcode(self.rcode)
        elif self.truncate and transport == "udp":
            reply.flags |= dns.flags.TC
        else:
            self._fill(reply, question.name, name, rdtype)
        return reply, self.delay_s.get(rdtype, 0)

    def _fill(self, reply, qname, name, rdtype):
        alias = self.zone.get((name, "CNAME"))
        if alias:
            reply.answer.append(dns.rrset.from_text(qname, self.ttl, "IN", "CNAME", alias + "."))
            name = alias
        known = {n for n, _ in self.zone}
        if name not in known:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        for address in self.zone.get((name, rdtype), ()):
            reply.answer.append(dns.rrset.from_text(name + ".", self.ttl, "IN", rdtype, address))
        if not reply.answer:
            soa = f"ns. admin. 1 3600 600 86400 {self.ttl}"
            reply.authority.append(dns.rrset.from_text("test.", self.ttl, "IN", "SOA", soa))

    async def _serve_tcp(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            length = int.from_bytes(await reader.readexactly(2), "big")
            wire = await reader.readexactly(length)
            reply, _ = self.reply(wire, "tcp", writer.get_extra_info("peername")[0])
            if reply is not None:
                out = reply.to_wire(max_size=65535)
                writer.write(len(out).to_bytes(2, "big") + out)
                await writer.drain()
        writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server):
        self.server = server

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        reply, delay_s = self.server.reply(data, "udp", addr[0])
        if reply is None:
            return
        if self.server.forge:
            forged = dns.message.from_wire(reply.to_wire())
            forged.id ^= 1
            self.transport.sendto(forged.to_wire(), addr)
            self.transport.sendto(b"\x00garbage", addr)
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s, self.transport.sendto, reply.to_wire(), addr)
