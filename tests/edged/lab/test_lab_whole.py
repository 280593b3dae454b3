from __future__ import annotations

import asyncio
import json
import shutil
import time

import pytest
from lab_clients import BGP, CN2, h3_client

from edged import config
from edged.lab.lab import DEFAULT_ENDPOINTS, DEFAULT_LINES, HOST, PREFIX, Lab, LineSpec


async def curl(lab, source, path, *options):
    """The answer of the first endpoint to curl on a line, or curl's exit status."""
    endpoint = next(iter(lab.endpoints.values()))
    where = f"{endpoint.host}:{endpoint.port}"
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--interface", source, "--cacert", lab.ca_file, *options),
        *("--resolve", f"{where}:{endpoint.spec.address}", f"https://{where}{path}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return out.decode() if process.returncode == 0 else process.returncode


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_takes_the_line_of_its_source_address():
    async def main():
        specs = [
            LineSpec.symmetric("cn2", CN2, rtt_s=0.02),
            LineSpec.symmetric("bgp", BGP, rtt_s=0.1),
        ]
        async with Lab(specs) as lab:
            for source, version in ((CN2, "1.1"), (BGP, "2")):
                told = json.loads(await curl(lab, source, "/echo", f"--http{version}"))
                assert (told["client"], told["version"]) == (source, version)
                assert told["endpoint"] == DEFAULT_ENDPOINTS[0].name
            if not lab.kernel_silence:
                pytest.skip("this kernel refuses socket filters")
            lab.lines.blackhole("cn2")
            assert await curl(lab, CN2, "/echo", "--max-time", "0.4") == 28  # timed out
            assert "client" in await curl(lab, BGP, "/echo", "--max-time", "5")

    asyncio.run(main())


def test_h3_crosses_the_lines_and_falls_silent_with_them():
    async def main():
        specs = [
            LineSpec.symmetric("cn2", CN2, rtt_s=0.02),
            LineSpec.symmetric("bgp", BGP, rtt_s=0.1),
        ]
        async with Lab(specs) as lab:
            endpoint = lab.endpoints["tokyo"]
            address = (endpoint.spec.address, endpoint.port)
            for source, rtt_s in ((CN2, 0.02), (BGP, 0.1)):
                async with h3_client(source, address, endpoint.host, lab.ca_file) as client:
                    start = time.monotonic()
                    _, body = await client.request("GET", HOST, "/echo")
                    assert rtt_s <= time.monotonic() - start < rtt_s + 0.2
                    told = json.loads(body)
                    assert (told["client"], told["version"]) == (source, "3")
                    name = lab.lines.of(source).name
                    lab.lines.blackhole(name)
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(client.request("GET", HOST, "/echo"), 0.4)
                    lab.lines.restore(name)
                    await asyncio.wait_for(client.request("GET", HOST, "/echo"), 10)

    asyncio.run(main())


def test_an_endpoint_may_be_farther_and_silent_on_its_own():
    async def main():
        async with Lab([LineSpec.symmetric("cn2", CN2, rtt_s=0.02)]) as lab:
            far = lab.endpoints["oregon"]
            address = (far.spec.address, far.port)
            async with h3_client(CN2, address, far.host, lab.ca_file) as client:
                start = time.monotonic()
                await client.request("GET", HOST, "/")
                assert time.monotonic() - start >= 0.02 + far.spec.extra_rtt_s
                far.silence()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.request("GET", HOST, "/"), 0.5)

    asyncio.run(main())


def test_the_written_configuration_is_valid_and_describes_the_lab():
    async def main():
        async with Lab() as lab:
            file = lab.write_config(preset="realtime", policy={"cadence": {"tcp_s": 7}})
            told = config.load(file)
            assert [line.source for line in told.topology.lines] == [
                spec.source for spec in DEFAULT_LINES
            ]
            ports = {e.name: e.port for e in told.topology.endpoints}
            assert ports == {name: e.port for name, e in lab.endpoints.items()}
            assert told.ca_file == lab.ca_file
            upstream = told.upstreams["llm"]
            assert (upstream.prefix, upstream.hosts) == (PREFIX, (HOST,))
            assert upstream.policy.cadence.icmp_s is None
            assert upstream.policy.cadence.tcp_s == 7
            directory = lab.directory
        assert not directory.exists()

    asyncio.run(main())
