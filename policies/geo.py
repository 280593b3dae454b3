"""Where things are: region names of the big clouds to coordinates, and distances.

A name is looked up as written (any case, ``_`` and spaces as ``-``), with an optional cloud before
it: ``aws:ap-southeast-3``. Without one the clouds are asked in the order AWS, GCP, Azure, Alibaba,
Tencent; only few names mean different places to two of them.
"""

from __future__ import annotations

import difflib
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

import yaml
from geopy.distance import geodesic

from policies.model import Location

CLOUDS: Final = ("aws", "gcp", "azure", "alibaba", "tencent")


class UnknownRegion(ValueError):
    """A region name nobody has; ``nearest`` holds the most similar valid ones."""

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"unknown region {name!r}{hint}")
        self.name = name
        self.nearest = nearest


@cache
def regions() -> dict[str, Location]:
    """Every accepted name (bare and with cloud) and where it is."""
    text = files("policies").joinpath("regions.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[float]]] = yaml.safe_load(text)
    known: dict[str, Location] = {}
    for cloud in CLOUDS:
        for name, (latitude, longitude) in table[cloud].items():
            location = Location(latitude, longitude)
            known.setdefault(name, location)
            known[f"{cloud}:{name}"] = location
    return known


def locate(name: str) -> Location:
    """The location of a region. Raises `UnknownRegion`."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    location = regions().get(key)
    if location is None:
        raise UnknownRegion(name, nearest_names(key))
    return location


def nearest_names(name: str) -> tuple[str, ...]:
    """At most three valid names that look like ``name``."""
    pool = [known for known in regions() if (":" in known) == (":" in name)]
    return tuple(difflib.get_close_matches(name, pool, n=3, cutoff=0.6))


@lru_cache(maxsize=4096)
def distance_km(a: Location, b: Location) -> float:
    """Geodesic distance on WGS-84 (Karney 2013, by geopy)."""
    return float(geodesic(a, b).km)
