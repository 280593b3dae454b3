"""relay.yaml: the example, every mistake with its place, and what becomes of it."""

import hashlib
import ipaddress
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme
import yaml

from edged.cli import main
from edged.mistakes import ConfigError
from edged.relay.config import load

ROOT = Path(__file__).parents[3]
DIGEST = hashlib.sha256(b"0123456789abcdef").hexdigest()
GOOD = {
    "certificate": {"chain_file": "chain.pem", "key_file": "key.pem"},
    "clients": [{"name": "one", "token_sha256": DIGEST, "allow": ["api.example.com"]}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relay")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("", "other-"):
        leaf = ca.issue_cert("localhost")
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}chain.pem"))
        leaf.private_key_pem.write_to_path(str(folder / f"{name}key.pem"))
    (folder / "token").write_text("0123456789abcdef-token\n")
    (folder / "short").write_text("0123\n")
    (folder / "two").write_text("0123456789abcdef 0123456789abcdef\n")
    return folder


def write(folder, **changes):
    file = folder / "relay.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return file


def clients(**changes):
    return {"clients": [{**GOOD["clients"][0], **changes}]}


def test_the_example_is_good_but_for_its_certificate(folder):
    for name in ("chain", "key"):
        shutil.copy(folder / f"{name}.pem", folder / f"relay-{name}.pem")
    shutil.copy(ROOT / "configs" / "relay.yaml", folder / "example.yaml")
    config = load(folder / "example.yaml")
    assert config.node_name == "hk-1"
    assert config.listen_proxy == (("0.0.0.0", 443),)
    (client,) = config.clients
    assert client.allow.permits("storage.googleapis.com", 443)
    assert client.allow.permits("github.com", 22)
    assert not client.allow.permits("github.com", 443)
    assert client.limits.requests_per_s == 500
    assert config.flow_limits.flow_bytes == 4 << 20
    assert list(config.upstreams) == ["openai"]


def test_what_a_file_says_is_what_the_relay_gets(folder):
    config = load(
        write(
            folder,
            private_networks=["10.0.0.0/8"],
            journal={"flow_mb": 2, "total_mb": 16, "flows": 7, "linger_s": "5s"},
            listen={"relay": ["127.0.0.1:1", "[::1]:2"], "admin": None, "h3": False},
            clients=[
                {
                    "name": "one",
                    "token_file": "token",
                    "token_sha256": [DIGEST.upper()],
                    "allow": ["*:*"],
                    "mbit_s": 8,
                    "flows": 3,
                }
            ],
        )
    )
    assert config.private_networks == (ipaddress.ip_network("10.0.0.0/8"),)
    limits = config.flow_limits
    assert (limits.flow_bytes, limits.total_bytes) == (2 << 20, 16 << 20)
    assert (limits.flows, limits.linger_s) == (7, 5.0)
    assert config.listen_proxy == (("127.0.0.1", 1), ("::1", 2))
    assert not config.h3
    (client,) = config.clients
    assert client.tokens == {
        bytes.fromhex(DIGEST),
        hashlib.sha256(b"0123456789abcdef-token").digest(),
    }
    assert (client.limits.bytes_per_s, client.limits.flows) == (1e6, 3)


MISTAKES = [
    ({"clients": []}, "clients", "must not be empty"),
    ({"certificate": {"chain_file": "chain.pem"}}, "certificate.key_file", "is missing"),
    (
        {"certificate": {"chain_file": "chain.pem", "key_file": "other-key.pem"}},
        "certificate",
        "the key does not belong to the certificate",
    ),
    (
        {"certificate": {"chain_file": "none.pem", "key_file": "key.pem"}},
        "certificate",
        "No such file",
    ),
    (
        {"certificate": {"chain_file": "token", "key_file": "key.pem"}},
        "certificate",
        "not in PEM form",
    ),
    (
        {
            "certificate": {
                "chain_file": "chain.pem",
                "key_file": "key.pem",
                "client_ca_file": "token",
            }
        },
        "certificate",
        "token",
    ),
    (clients(token_sha256="abc"), "clients[0].token_sha256[0]", "64 hexadecimal digits"),
    (
        clients(token_sha256=hashlib.sha256(b"").hexdigest()),
        "clients[0].token_sha256[0]",
        "SHA-256 of nothing",
    ),
    (clients(token_file="short"), "clients[0].token_file", "fewer than 16 characters"),
    (clients(token_file="two"), "clients[0].token_file", "one token and nothing else"),
    (clients(token_file="nowhere"), "clients[0].token_file", "cannot be read"),
    (clients(token_sha256=[]), "clients[0]", "neither a token nor a certificate"),
    (clients(certificate_sha256=DIGEST), "clients[0].certificate_sha256", "client_ca_file"),
    (clients(allow=[]), "clients[0].allow", "must not be empty"),
    (clients(allow=["https://x"]), "clients[0].allow[0]", "write host, *.host"),
    (clients(allow=["10.0.0.1/8"]), "clients[0].allow[0]", "the network is 10.0.0.0/8"),
    (clients(flows=0), "clients[0].flows", ">= 1"),
    (clients(mbit_s=0), "clients[0].mbit_s", "> 0"),
    (clients(tokn="x"), "clients[0].tokn", "did you mean 'token_file'"),
    ({"clients": GOOD["clients"] * 2}, "clients[1].name", "is taken"),
    (
        {"clients": [GOOD["clients"][0], {**GOOD["clients"][0], "name": "two"}]},
        "clients[1]",
        "the same secret as client 'one'",
    ),
    ({"private_networks": ["10.0.0.1/8"]}, "private_networks[0]", "the network is 10.0.0.0/8"),
    ({"listen": {"relay": "443"}}, "listen.relay[0]", "address:port"),
    (
        {"listen": {"relay": "127.0.0.1:7071", "admin": "127.0.0.1:7071"}},
        "listen.admin",
        "listened on already",
    ),
    ({"listen": {"relay": ["127.0.0.1:9", "127.0.0.1:9"]}}, "listen.relay[1]", "already"),
    ({"listen": {"admin": "0.0.0.0:7071"}}, "listen.admin", "not a loopback address"),
    ({"listen": {"proxy": "127.0.0.1:1"}}, "listen.proxy", "unknown key"),
    (
        {"upstreams": [{"name": "a", "prefix": "/a", "endpoints": [{"url": "https://a"}]}]},
        "upstreams[0]",
        "has no hosts",
    ),
    ({"unlisted_policy": "bulky"}, "unlisted_policy", "did you mean 'bulk'"),
    ({"journal": {"flow_mb": 0}}, "journal.flow_mb", "> 0"),
    ({"relays": []}, "relays", "unknown key"),
]


@pytest.mark.parametrize(("changes", "where", "text"), MISTAKES)
def test_every_mistake_has_its_place(folder, changes, where, text):
    file = write(folder, **changes)
    with pytest.raises(ConfigError) as told:
        load(file)
    lines = [str(mistake) for mistake in told.value.mistakes]
    found = [line for line in lines if re.match(rf".*:\d+:\d+: {re.escape(where)}: ", line)]
    assert len(found) == 1, lines
    assert text in found[0]


def test_secrets_are_not_shown(folder):
    file = write(folder, **clients(token_file="s3cret-put-here-by-mistake", token_sha256="s3cret"))
    with pytest.raises(ConfigError) as told:
        load(file)
    assert "s3cret" not in str(told.value)


def test_the_command_line_checks_and_tells_the_schema(folder, capsys):
    file = str(write(folder))
    assert main(["relay", "--check", "-c", file]) == 0
    assert capsys.readouterr().out == f"{file}: good: 1 client, 0 upstreams, 1 line\n"
    write(folder, **clients(flows=0, allow=[]))
    assert main(["relay", "--check", "-c", file]) == 1
    assert capsys.readouterr().err == f"{file}: 2 mistakes\n"
    assert main(["relay", "-c", file]) == 1
    assert "has mistakes" in capsys.readouterr().err
    assert main(["schema", "relay"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "clients" in schema["required"]
    for definition in schema["$defs"].values():
        for name, entry in definition.get("properties", {}).items():
            assert "description" in entry, name


@pytest.mark.tool("systemd-analyze")
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_unit_is_valid(tmp_path):
    unit = (ROOT / "systemd" / "edged-relay.service").read_text()
    file = tmp_path / "edged-relay.service"
    file.write_text(
        unit.replace("/opt/edged/bin/edged", shutil.which("true")).replace(
            "User=edged-relay", "User=daemon"
        )
    )
    result = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
