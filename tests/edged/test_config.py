"""What a valid configuration becomes, and that nothing in a file can raise anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.config import Config, ConfigError, Credentials, load
from edged.config_file import ConfigFile
from edged.config_policies import presets
from edged.yaml_positions import parse, resolve_plain
from policies.model import Carrier, Location, Replay
from policies.schema import Policy
from tests.harness.user import unprivileged

FULL = """
node: {name: bj-1, location: [39.90, 116.40]}
listen: {proxy: ["127.0.0.1:7070", "[::1]:7070"], admin: 127.0.0.1:7071}
lines:
  - {name: cn2, kind: cn2, bind: {source: 10.71.1.2}, capacity_mbps: 100, price_per_gb: 0.8}
  - {name: bgp, bind: {interface: eth1}, dns: [1.1.1.1, "[2606:4700::1]:5353"]}
  - {name: hk, bind: {mark: 0x11}}
upstreams:
  - name: openai
    hosts: [API.openai.com, "*.openai.example"]
    prefix: /openai/
    policy: chat
    endpoints:
      - name: us-west
        url: https://api.openai.com
        protocols: [h3, h2, h1]
        accepts_encoding: [zstd]
      - {url: "https://sg.example.net:8443/v2/", location: [1.35, 103.99], lines: [bgp],
         address: 10.71.2.1}
  - {name: plain, prefix: /, endpoints: [{url: "http://[::1]:8080"}]}
unlisted_hosts: deny
unlisted_policy: frugal
limits: {idle_s: 90s, header_bytes: 16384}
log: {access: access.log, level: warning}
"""


def make(tmp_path: Path, text: str = FULL, **policies: str) -> Path:
    (tmp_path / "policies.d").mkdir(exist_ok=True)
    for name, body in policies.items():
        (tmp_path / "policies.d" / f"{name}.yaml").write_text(body)
    (tmp_path / "edged.yaml").write_text(text)
    return tmp_path / "edged.yaml"


@pytest.fixture
def full(tmp_path: Path) -> Config:
    return load(make(tmp_path, chat="extends: realtime\nreplay: always\nweights: {rtt: 3}\n"))


def test_topology(full: Config) -> None:
    cn2, bgp, hk = full.topology.lines
    assert (cn2.source, cn2.capacity_bps, cn2.price_per_gb) == ("10.71.1.2", 100e6, 0.8)
    assert (bgp.interface, bgp.dns) == ("eth1", ("1.1.1.1", "[2606:4700::1]:5353"))
    assert hk.mark == 17
    assert full.topology.node_location == Location(39.90, 116.40)
    west, sg, plain = full.topology.endpoints
    assert west.key == "openai/us-west"
    assert (west.scheme, west.host, west.port, west.base_path) == (
        ("https", "api.openai.com", 443, "")
    )
    assert west.protocols == (Carrier.H3, Carrier.H2, Carrier.H1)
    assert (west.learns_h3, sg.learns_h3) == (False, True)
    assert (sg.name, sg.port, sg.base_path) == ("sg.example.net", 8443, "/v2")
    assert (sg.protocols, sg.lines, sg.address) == (
        (Carrier.H2, Carrier.H1),
        ("bgp",),
        "10.71.2.1",
    )
    assert (plain.host, plain.port, plain.protocols) == ("::1", 8080, (Carrier.H1,))
    assert len(full.topology.paths()) == 3 + 1 + 3


def test_upstreams_and_policies(full: Config) -> None:
    openai = full.upstreams["openai"]
    assert (openai.hosts, openai.prefix) == (("api.openai.com", "*.openai.example"), "/openai")
    assert openai.policy_name == "chat"
    assert openai.policy.replay is Replay.ALWAYS
    assert openai.policy.weights.rtt == 3, "the file's"
    assert openai.policy.weights.loss == 2, "realtime's"
    assert openai.policy.cadence.icmp_s == 0.5
    assert full.upstreams["plain"].policy == Policy()
    assert full.unlisted_policy.weights.cost == 500


def test_the_rest(full: Config) -> None:
    assert full.listen_proxy == (("127.0.0.1", 7070), ("::1", 7070))
    assert full.listen_admin == ("127.0.0.1", 7071)
    assert not full.unlisted_allowed
    assert (full.limits.idle_s, full.limits.header_bytes) == (90.0, 16384)
    assert full.access_log == str(full.file.parent / "access.log")
    assert full.log_level == "warning"


def test_an_empty_file_is_a_forward_proxy_on_loopback(tmp_path: Path) -> None:
    config = load(make(tmp_path, "# nothing\n"))
    assert [line.name for line in config.topology.lines] == ["default"]
    assert config.listen_proxy == (("127.0.0.1", 7070),)
    assert config.unlisted_allowed
    assert config.unlisted_policy == Policy()
    assert config.access.allow == ()


def test_relays(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc-secret\n")
    text = """
lines: [{name: cn2}, {name: bgp, bind: {source: 127.0.0.2}}]
relays:
  - {name: hk, url: "https://hk.example:8443", token_file: token, lines: [bgp]}
  - {name: sg, url: "https://sg.example", address: 10.0.0.9}
upstreams:
  - name: u
    prefix: /u
    endpoints:
      - {name: plain, url: "https://a.example"}
      - {name: far, url: "https://b.example", relays: [sg], direct: false}
"""
    config = load(make(tmp_path, text))
    topology = config.topology
    assert [leg.name for leg in topology.legs()] == [
        *("bgp>relay:hk/hk", "cn2>relay:sg/sg", "bgp>relay:sg/sg"),
    ]
    assert [path.name for path in topology.paths()] == ["cn2>u/plain", "bgp>u/plain"]
    assert [path.name for path in topology.relayed()] == [
        *("bgp>hk>u/plain", "cn2>sg>u/plain", "bgp>sg>u/plain"),
        *("cn2>sg>u/far", "bgp>sg>u/far"),
    ]
    door = topology.relays[1].door
    assert door is not None
    assert (door.host, door.port, door.address) == ("sg.example", 443, "10.0.0.9")
    leg = topology.relayed()[0].leg
    assert leg == topology.legs()[0]
    assert config.tokens["hk"].secret == b"abc-secret"
    assert "secret" not in repr(config)


def test_a_listener_for_others(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("# who\nann:s3cret: x\n")
    text = """
listen: {proxy: "0.0.0.0:7070", admin: "[::]:7071"}
access: {allow: [10.0.0.0/8, 2001:db8::/32], credentials_file: users}
"""
    config = load(make(tmp_path, text))
    assert [str(net) for net in config.access.allow] == ["10.0.0.0/8", "2001:db8::/32"]
    assert config.access.credentials is not None
    assert config.access.credentials.accepts(b"ann:s3cret: x")
    assert not config.access.credentials.accepts(b"ann:s3cret")
    assert "s3cret" not in repr(config)


def test_credentials_show_and_leak_nothing() -> None:
    credentials = Credentials([b"ann:one", b"bob:two"])
    assert repr(credentials) == "<2 credentials>"
    assert credentials == Credentials([b"ann:one", b"bob:two"])
    assert credentials != Credentials([b"ann:one"])


def test_a_file_with_a_presets_name_extends_the_preset(tmp_path: Path) -> None:
    text = 'upstreams: [{name: a, prefix: /a, policy: bulk, endpoints: [{url: "https://a.b"}]}]'
    config = load(make(tmp_path, text, bulk="extends: bulk\nweights: {rtt: 9}\n"))
    weights = config.upstreams["a"].policy.weights
    assert (weights.rtt, weights.loss) == (9, 2)


def test_null_in_a_policy_overrides(tmp_path: Path) -> None:
    text = 'upstreams: [{name: a, prefix: /a, policy: p, endpoints: [{url: "https://a.b"}]}]'
    config = load(make(tmp_path, text, p="extends: realtime\ncadence: {icmp_s: null}\n"))
    cadence = config.upstreams["a"].policy.cadence
    assert cadence.icmp_s is None
    assert cadence.ping_s == 0.5


def test_editors_backups_are_no_policies(tmp_path: Path) -> None:
    file = make(tmp_path, "")
    (tmp_path / "policies.d" / ".chat.yaml.swp").write_text("{{{")
    (tmp_path / "policies.d" / ".#chat.yaml").write_text("{{{")
    (tmp_path / "policies.d" / "chat.yaml~").write_text("{{{")
    (tmp_path / "policies.d" / "README").write_text("{{{")
    load(file)


def test_every_preset_is_a_policy() -> None:
    assert set(presets()) == {
        *("balanced", "realtime", "bulk", "frugal", "nearest-three"),
        *("distance-latency-loss", "latency-failure-load", "latency-load-bandwidth"),
    }
    for name, data in presets().items():
        policy = Policy.model_validate(data)
        if name.count("-"):
            assert policy.scheme == name
    assert Policy.model_validate(presets()["balanced"]) == Policy()


@pytest.mark.parametrize(
    ("raw", "position", "text"),
    [
        (b"node:\n  name: caf\xe9\n", (2, 12), "the byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfnode:\n  name: caf\xe9\n", (2, 12), "the byte 0xe9 is not UTF-8"),
        ("node: {}".encode("utf-16"), (1, 1), "the file is UTF-16"),
        (b"node: {name: a}\nx: \x00\n", (2, 4), "the character #x0000 is not allowed"),
        (b"[" * 3000, (1, 1), "nested too deeply"),
        (b"#" * (2 << 20), (1, 1), "is larger than"),
        (
            b"a: &a [" + b"x," * 300 + b"]\nb: &b [" + b"*a," * 300 + b"]\nc: [" + b"*b," * 300
            + b"]",
            (1, 1),
            "expands to more than",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_yaml(
    raw: bytes, position: tuple[int, int], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "edged.yaml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(file)
    (mistake,) = caught.value.mistakes
    assert tuple(mistake.mark) == position
    assert text in str(mistake)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "edged.yaml"
    file.write_bytes(b"\xef\xbb\xbfnode: {name: a}\r\nunlisted_hosts: deny\r\n")
    assert load(file).node_name == "a"


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "nothing.yaml" if kind == "missing" else tmp_path)


def test_a_file_without_permission(tmp_path: Path) -> None:
    file = make(tmp_path)
    file.chmod(0)
    with unprivileged(), pytest.raises(ConfigError, match="Permission denied"):
        load(file)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_parse_never_raises(raw: bytes) -> None:
    document = parse(Path("x"), raw)
    assert document.broken <= bool(document.problems)


WORDS = st.sampled_from(
    [
        *("node", "listen", "lines", "upstreams", "relays", "name", "bind", "url", "endpoints"),
        *("hosts", "prefix", "policy", "proxy", "admin", "access", "allow", "tls", "ca_file"),
        *("location", "dns", "protocols", "credentials_file", "limits", "log", "policies_dir"),
    ]
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-9, 1 << 40),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["a", "127.0.0.1:1", "h3", "/", "https://a.b", "\x00", "é.é", "::1"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(WORDS, VALUES, max_size=6))
def test_only_config_errors_come_out(data: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "edged.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True))
    try:
        load(file)
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        return
    assert mistakes
    assert all(str(mistake).startswith(f"{file}:") for mistake in mistakes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("off", "off"), ("yes", "yes"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01")),
        *(("010", 10), ("0x1f", 31), ("0o17", 15), ("1e3", 1000.0), (".5", 0.5), ("-3", -3)),
        *(("~", None), ("", None), ("true", True), ("FALSE", False), ("1_000", "1_000")),
    ],
)
def test_the_core_schema(text: str, value: object) -> None:
    assert resolve_plain(text) == value
    assert type(resolve_plain(text)) is type(value)


def test_every_key_is_documented() -> None:
    def undocumented(schema: dict[str, object], name: str) -> list[str]:
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        return [
            f"{name}.{key}" for key, p in properties.items() if not {"description", "$ref"} & set(p)
        ]

    for model in (ConfigFile, Policy):
        schema = json.loads(json.dumps(model.model_json_schema()))
        missing = undocumented(schema, model.__name__)
        for name, section in schema["$defs"].items():
            missing += undocumented(section, name)
        assert [m for m in missing if not m.endswith(".name")] == []
