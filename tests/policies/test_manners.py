"""How much PINGing a server bears, learnt where it costs nothing."""

from policies.manners import AVERSE_MOST_S, AVERSE_S, TRIAL, Manners, Patience


def tolerant(now=0.0):
    manners = Manners()
    for i in range(TRIAL):
        manners.answered("a", now + i / 5)
    return manners


def test_at_first_only_idle_connections_are_asked():
    manners = Manners()
    assert manners.patience("a", 0.0) is Patience.IDLE
    for i in range(TRIAL - 1):
        manners.answered("a", i / 5)
    assert manners.patience("a", 2.0) is Patience.IDLE
    manners.answered("a", 2.0)
    assert manners.patience("a", 2.0) is Patience.ANY
    assert manners.patience("b", 2.0) is Patience.IDLE


def test_pings_far_apart_prove_nothing():
    manners = Manners()
    for i in range(3 * TRIAL):
        manners.answered("a", 15.0 * i)
    assert manners.patience("a", 1000.0) is Patience.IDLE


def test_enhance_your_calm_stops_pings_for_a_time_that_doubles():
    manners = tolerant()
    manners.calmed("a", 10.0)
    assert manners.patience("a", 10.0 + AVERSE_S - 1) is Patience.NONE
    assert manners.patience("a", 10.0 + AVERSE_S) is Patience.IDLE
    manners.calmed("a", 1000.0)
    assert manners.patience("a", 1000.0 + 2 * AVERSE_S - 1) is Patience.NONE
    for _ in range(20):
        manners.calmed("a", 2000.0)
    assert manners.patience("a", 2000.0 + AVERSE_MOST_S) is Patience.IDLE


def test_a_connection_that_ends_while_it_is_tried_counts_as_impatience_but_not_later():
    manners = Manners()
    manners.ended("a", 0.0)  # nothing was answered yet: it may just be down
    assert manners.patience("a", 0.0) is Patience.IDLE
    manners.answered("a", 1.0)
    manners.answered("a", 1.2)
    manners.ended("a", 1.4)
    assert manners.patience("a", 1.4) is Patience.NONE
    manners = tolerant()
    manners.ended("a", 10.0)
    assert manners.patience("a", 10.0) is Patience.ANY


def test_servers_that_are_gone_are_forgotten():
    manners = tolerant()
    manners.retain(frozenset({"b"}))
    assert manners.patience("a", 10.0) is Patience.IDLE
