"""Regions and distances."""

import pytest

from policies.geo import CLOUDS, UnknownRegion, distance_km, locate, regions
from policies.model import Location


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("us-west1", (45.6, -121.2)),
        ("asia-east1", (24.1, 120.5)),
        ("asia-east2", (22.3, 114.2)),
        ("ap-northeast-1", (35.7, 139.7)),
        ("eastus", (37.4, -79.8)),
        ("cn-hongkong", (22.3, 114.2)),
        ("ap-beijing", (39.9, 116.4)),
        ("AP_Beijing", (39.9, 116.4)),
        (" us west1 ", (45.6, -121.2)),
        ("tencent:ap-singapore", (1.35, 103.8)),
    ],
)
def test_region_names_of_every_cloud(name, near):
    assert locate(name) == pytest.approx(near, abs=0.1)


def test_a_cloud_before_the_name_settles_which_is_meant():
    jakarta, kuala_lumpur = locate("aws:ap-southeast-3"), locate("alibaba:ap-southeast-3")
    assert distance_km(jakarta, kuala_lumpur) > 1000
    assert locate("ap-southeast-3") == jakarta


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("us-wast1", "us-west1"), ("eastus9", "eastus"), ("aws:eu-west-9", "aws:eu-west-1")],
)
def test_an_unknown_name_gets_the_nearest_valid_ones(name, nearest):
    with pytest.raises(UnknownRegion) as caught:
        locate(name)
    assert nearest in caught.value.nearest
    assert len(caught.value.nearest) <= 3
    assert nearest in str(caught.value)


def test_nonsense_gets_no_suggestion():
    with pytest.raises(UnknownRegion, match=r"^unknown region 'qqqqqqqq'$"):
        locate("qqqqqqqq")


def test_every_region_is_on_the_earth_and_every_cloud_has_many():
    for name, (latitude, longitude) in regions().items():
        assert -90 <= latitude <= 90, name
        assert -180 <= longitude <= 180, name
    for cloud in CLOUDS:
        assert sum(name.startswith(f"{cloud}:") for name in regions()) >= 20


def test_distances_are_geodesic():
    beijing, oregon = Location(39.90, 116.40), Location(45.59, -121.18)
    assert distance_km(beijing, oregon) == pytest.approx(8940, rel=0.001)
    assert distance_km(oregon, beijing) == distance_km(beijing, oregon)
    assert distance_km(beijing, beijing) == 0
    # on the ellipsoid a degree of latitude is longer at the pole
    assert distance_km(Location(0, 0), Location(1, 0)) == pytest.approx(110.574, abs=0.01)
    assert distance_km(Location(89, 0), Location(90, 0)) == pytest.approx(111.694, abs=0.01)
