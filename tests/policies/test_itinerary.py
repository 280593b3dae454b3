"""Which path an exchange takes next."""

from hypothesis import given
from hypothesis import strategies as st

from policies.itinerary import Itinerary

PATHS = ("a", "b", "c", "d")


def test_the_best_that_is_reachable_and_did_not_fail():
    paths = Itinerary(PATHS, eligible=1, reachable=3)
    assert paths.pick() == "a"
    paths.failed("a")
    assert (paths.pick(), paths.pick(repeat=True)) == ("b", "a")
    paths.went_down("b")
    assert (paths.pick(), paths.is_down("b")) == ("c", True)
    paths.failed("c")
    assert (paths.pick(), paths.pick(repeat=True)) == (None, "a")


def test_races_and_hedges_take_only_what_is_fit_and_another():
    paths = Itinerary(PATHS, eligible=2)
    assert paths.pick_fit(but=["a"]) == "b"
    assert (paths.pick(but=["a"]), paths.pick(but=["a", "b"])) == ("b", "c")
    paths.failed("b")
    assert paths.pick_fit(but=["a"]) is None


def test_a_new_ranking_knows_what_is_down_but_not_what_failed_here():
    paths = Itinerary(PATHS)
    paths.failed("a")
    paths.went_down("b")
    paths.reroute(("b", "a"), None, None)
    assert paths.pick() == "b"
    paths.failed("b")
    assert paths.pick() is None


def test_last_resorts_are_taken_once_until_a_path_is_found_again():
    paths = Itinerary(PATHS, reachable=0)
    assert paths.pick(repeat=True) is None
    paths.tries("a")
    assert (paths.resort([]), paths.resort(["b"])) == ("b", "c")
    paths.failed("b")
    paths.found_again()
    assert (paths.resort([]), paths.resort(["a"])) == ("a", "c")


events = st.lists(
    st.tuples(st.sampled_from(["failed", "went_down", "tries"]), st.sampled_from(PATHS))
)


@given(events, st.integers(0, 4) | st.none(), st.integers(0, 4) | st.none())
def test_what_is_picked_is_reachable_not_down_and_the_first_such(seen, eligible, reachable):
    paths = Itinerary(PATHS, eligible, reachable)
    down, failed = set(), set()
    for what, path in seen:
        getattr(paths, what)(path)
        {"failed": failed, "went_down": down}.get(what, set()).add(path)
    open_ = [path for path in PATHS[:reachable] if path not in down]
    fresh = [path for path in open_ if path not in failed]
    assert paths.pick(repeat=True) == (open_[0] if open_ else None)
    assert paths.pick() == (fresh[0] if fresh else None)
    fit = [p for p in fresh if p in PATHS[:reachable][:eligible] and p != "a"]
    assert paths.pick_fit(but=["a"]) == (fit[0] if fit else None)
