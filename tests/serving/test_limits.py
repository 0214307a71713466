"""Limits of one viewer, and the address that identifies a viewer."""

from contextlib import ExitStack

import pytest

from live2diff.errors import LimitReached
from live2diff.serving.limits import Counts, VisitorLimits, visitor_address

HOME = "8.8.8.8"


@pytest.mark.parametrize(
    ("headers", "peer", "space", "whose"),
    [
        ({}, "198.51.100.7", False, "198.51.100.7"),
        ({"x-forwarded-for": "8.8.8.8"}, "198.51.100.7", False, "198.51.100.7"),
        ({"x-forwarded-for": "8.8.8.8"}, "127.0.0.1", False, None),
        ({"x-forwarded-for": "8.8.8.8"}, "10.0.0.1", True, "8.8.8.8"),
        ({"x-forwarded-for": "1.1.1.1, 8.8.8.8, 10.20.0.3"}, "10.0.0.1", True, "8.8.8.8"),
        ({"x-forwarded-for": "nonsense"}, "10.0.0.1", True, None),
        ({"x-forwarded-for": "2001:4860:4860::8844"}, "10.0.0.1", True, "2001:4860:4860::/64"),
        ({}, None, False, None),
    ],
    ids=["peer", "made up", "this machine", "space", "space, made up", "nonsense", "a household", "nobody"],
)
def test_the_address_of_a_request(headers, peer, space, whose, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/live2diff" if space else "")
    assert visitor_address(headers, peer) == whose


@pytest.mark.parametrize(
    ("forwarded", "proxies", "whose"),
    [
        ("8.8.8.8", 1, "8.8.8.8"),
        ("9.9.9.9, 8.8.8.8", 1, "8.8.8.8"),
        ("8.8.8.8, 1.1.1.1", 2, "8.8.8.8"),
        ("9.9.9.9, 8.8.8.8, 1.1.1.1, 10.0.0.7", 2, "8.8.8.8"),
        ("8.8.8.8", 2, "8.8.8.8"),
        ("9.9.9.9, 8.8.8.8", 0, "8.8.8.8"),
        ("9.9.9.9, 1.1.1.1, 8.8.8.8", -1, "8.8.8.8"),
    ],
    ids=["one", "one, made up", "two", "two, made up", "fewer than trusted", "none", "less than none"],
)
def test_a_proxy_that_appends_its_own_address_is_counted(forwarded, proxies, whose, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/live2diff")
    monkeypatch.setenv("LIVE2DIFF_TRUSTED_PROXIES", str(proxies))
    assert visitor_address({"x-forwarded-for": forwarded}, "10.0.0.1") == whose


def test_an_address_has_so_many_at_once_and_a_tunnel_any_number():
    counts = Counts(2, "clips")
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(counts.one_more(HOME))
        for _ in range(5):
            held.enter_context(counts.one_more(None))
        with pytest.raises(LimitReached, match="2 clips from your address"), counts.one_more(HOME):
            pass
        with counts.one_more("198.51.100.8"):
            pass
    with counts.one_more(HOME):
        pass


def test_the_limits_are_settings():
    assert VisitorLimits(visits=7, turn_seconds=90).in_words() == (
        "Stay as long as you like; once others wait, a turn lasts 90 seconds. "
        "At most 7 visits at once from one address."
    )
    with pytest.raises(ValueError, match="visits is 0"):
        VisitorLimits(visits=0)
