"""What a move does inside the two QUIC engines. Fails when those insides change."""

import asyncio
import os

from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.recovery import QuicPacketRecovery

from edged.upstream.quic_qh3 import _PATHS
from tests.harness.h3 import both_engines, request, until
from tests.harness.migrating import confirmed, over, prepared, run, talking, tend_soon

INITIAL_WINDOW_BYTES = 10 * 1500


def window_bytes(engine):
    """The congestion window."""
    if engine.probes:
        return engine._quic._loss.congestion_window
    return engine._core.congestion_window


@both_engines
def test_connection_ids_are_not_shared_by_lines(engine, certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        server = origin.protocols[0]._quic
        for left, taken in ("ab", "bc"):
            mobile.die(left)
            assert connection.leave()
            assert connection.path.line.name == taken
            await until(lambda: connection.capacity)
        # Those left are retired (RFC 9000 section 5.1.2), and the server gave others; qh3 keeps
        # one of the two that it used on a path.
        retired = 2 if engine == "pure" else 1
        await until(lambda: min(cid.sequence_number for cid in server._host_cids) >= retired)
        await over(talk, attempt)
        seen = [wire.ids() for wire in mobile.wires.values()]
        assert all(seen)
        assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen))
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.012, "c": 0.014})


@both_engines
def test_congestion_control_and_round_trips_begin_anew(engine, certificates):
    async def body(mobile, origin, talk):
        connection = await confirmed(mobile)
        upload = mobile.send(connection, request(b"POST", body_length=None), end=False)
        while window_bytes(connection.engine) < 4 * INITIAL_WINDOW_BYTES:
            await upload.writable.wait()
            upload.stream.send_data(os.urandom(65536))
            await asyncio.sleep(0.005)
        srtt_s = connection.engine.counters().srtt_s
        assert 0.01 <= srtt_s < 0.3
        mobile.die("a")
        assert connection.leave()
        if connection.engine.probes:
            assert window_bytes(connection.engine) <= INITIAL_WINDOW_BYTES
            assert connection.engine.counters().srtt_s is None
        else:  # once the peer has answered there
            core = connection.engine._core
            await until(lambda: core.active_path[2][0] == "192.0.2.1")
            assert window_bytes(connection.engine) <= 2 * INITIAL_WINDOW_BYTES
        await until(lambda: connection.capacity)
        upload.stream.send_end()
        await until(lambda: talk.exchanges[0].ended, 20)
        await until(lambda: connection.engine.counters().srtt_s)
        assert connection.engine.counters().srtt_s >= 0.4
        # What went down with the old line was sent again, but is no loss of the new one's.
        talk.end()
        await upload.done
        assert upload.failure is None
        connection.close()

    run(engine, certificates, body, rtts_s={"a": 0.01, "b": 0.4})


def test_aioquic_pads_and_answers_challenges(certificates, monkeypatch):
    tend_soon(monkeypatch)

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        await prepared(mobile)
        server = origin.protocols[0]._quic
        await until(lambda: len(server._network_paths) == 2)
        await until(lambda: server._network_paths[1].is_validated)
        assert not connection.engine._quic.unproven
        challenges = [len(data) for data in mobile.wires["b"].up]
        assert set(challenges) == {1200}  # RFC 9000 section 8.2.1
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_aioquic_challenges_a_path_that_it_uses_unprepared(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        mobile.die("a")
        assert connection.leave()
        quic = connection.engine._quic
        assert quic.unproven
        await until(lambda: not quic.unproven)
        assert quic._network_paths[0].is_validated
        assert len(mobile.wires["b"].up[0]) == 1200
        await over(talk, attempt)
        connection.close()

    run("pure", certificates, body)


def test_qh3_keeps_its_window_on_paths_beyond_those_it_knows(certificates):
    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        core = connection.engine._core
        for i, (left, taken) in enumerate(["ab", "ba", "ab", "ba", "ab"], 1):
            mobile.wires[taken].dead = False
            mobile.up.add(taken)
            mobile.die(left)
            assert connection.leave()
            expected = f"192.0.2.{min(i, _PATHS - 1)}"
            await until(lambda expected=expected: core.active_path[2][0] == expected)
            await until(lambda: connection.capacity)
        await over(talk, attempt)
        connection.close()

    run("fast", certificates, body, rtts_s={"a": 0.01, "b": 0.012})


def test_the_insides_of_aioquic_that_migration_rests_on():
    path = QuicNetworkPath(("127.0.0.1", 1))
    for name in (
        *("addr", "bytes_received", "is_validated", "local_challenge_sent", "local_challenges"),
        *("peer_cid", "remote_challenges", "validation_deadline"),
    ):
        assert hasattr(path, name), name
    for name in (
        *("_handle_path_response_frame", "_parse_transport_parameters", "_retire_peer_cid"),
        *("_send_probing_frames", "_use_reserved_peer_cid", "_close_end"),
    ):
        assert callable(getattr(QuicConnection, name)), name
    recovery = QuicPacketRecovery(
        congestion_control_algorithm="cubic",
        initial_rtt=0.2,
        max_datagram_size=1200,
        peer_completed_address_validation=True,
        send_probe=lambda: None,
    )
    # All that its constructor sets and that says something of a path is what a move sets anew.
    of_the_path = {"_cc", "_pacer", "_pto_count", "_rtt_initialized", "_rtt_latest", "_rtt_min"}
    of_the_path |= {"_rtt_smoothed", "_rtt_variance"}
    others = {"_logger", "_quic_logger", "_rtt_first_sample_time", "_rtt_initial", "_send_probe"}
    others |= {"_time_of_last_sent_ack_eliciting_packet", "handshake_confirmed", "max_ack_delay"}
    others |= {"peer_completed_address_validation", "spaces"}
    assert set(vars(recovery)) == of_the_path | others


def test_qh3_needs_no_connection_ids_of_its_own(certificates):
    """Else servers run out of them: quic-go then says "skipping validation of new path"."""

    async def body(mobile, origin, talk):
        connection, attempt = await talking(mobile, talk)
        server = origin.protocols[0]._quic
        assert server._peer_cid.cid == b""
        assert not server._peer_cid_available
        await over(talk, attempt)
        connection.close()

    run("fast", certificates, body)
