"""Allow lists and the guard behind them."""

import ipaddress

import pytest

from edged.relay.targets import AllowList, Guard, parse


def allow(*entries):
    return AllowList(parse(entry) for entry in entries)


LIST = allow("api.example.com", "*.anthropic.com", "git.example.net:22", "10.1.0.0/16:8080")


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("api.example.com", 443, True),
        ("api.example.com", 80, False),
        ("example.com", 443, False),
        ("x.api.example.com", 443, False),
        ("api.anthropic.com", 443, True),
        ("a.b.anthropic.com", 443, True),
        ("anthropic.com", 443, False),
        ("evilanthropic.com", 443, False),
        ("git.example.net", 22, True),
        ("git.example.net", 443, False),
        ("10.1.2.3", 8080, True),
        ("10.1.2.3", 443, False),
        ("10.2.0.1", 8080, False),
        ("::ffff:10.1.2.3", 8080, True),
        ("0x0a010203", 8080, True),
        ("10.66051", 8080, True),
        ("169.254.169.254", 443, False),
        ("127.0.0.1", 443, False),
    ],
)
def test_what_a_list_permits(host, port, allowed):
    assert LIST.permits(host, port) is allowed


def test_a_star_means_every_public_host():
    star = allow("*", "*:8443")
    for host in ("example.com", "1.1.1.1", "2606:4700::1111"):
        assert star.permits(host, 443)
        assert star.permits(host, 8443)
        assert not star.permits(host, 22)
    for host in (
        "10.0.0.1",
        "127.1",
        "2130706433",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "100.64.0.1",
        "192.168.1.1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not star.permits(host, 443), host


def test_any_port():
    assert allow("example.com:*").permits("example.com", 22)
    assert allow("[2001:db8::]/32:*").permits("2001:db8::5", 9)
    assert not allow("[2001:db8::]/32:*").permits("2001:db9::5", 9)


@pytest.mark.parametrize(
    "entry",
    ["", "a b", "http://x", "x:0", "x:70000", "10.0.0.1/8", "1::2", "x/y", "*.", ":443", "*x.com"],
)
def test_mistakes_are_explained(entry):
    with pytest.raises(ValueError) as told:
        parse(entry)
    assert str(told.value)


def test_a_name_may_lead_to_public_addresses_only():
    guard = Guard([], [allow("*", "10.0.0.0/8")])
    assert guard("example.com", "93.184.216.34") is None
    for address in (
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
    ):
        assert guard("example.com", address), address


def test_an_address_on_a_list_may_be_asked_for_as_such():
    guard = Guard([], [allow("10.0.0.0/8", "169.254.169.254:80")])
    assert guard("10.0.0.1", "10.0.0.1") is None
    assert guard("169.254.169.254", "169.254.169.254") is None
    assert guard("192.168.0.1", "192.168.0.1")


def test_names_may_lead_to_networks_that_the_operator_named():
    guard = Guard([ipaddress.ip_network("10.0.0.0/8")], [])
    assert guard("internal.example", "10.0.0.1") is None
    assert guard("internal.example", "::ffff:10.0.0.1") is None
    assert guard("internal.example", "192.168.0.1")
