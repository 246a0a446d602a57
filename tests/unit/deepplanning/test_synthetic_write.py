"""The layout of a synthetic database, how it is marked, and what is refused."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from opd_ray.deepplanning.synthetic.cities import city_between, city_centre, kilometres
from opd_ray.deepplanning.synthetic.places import Place, Surveyor, road
from opd_ray.deepplanning.synthetic.wording import BRANDS, clock_range, named
from opd_ray.deepplanning.synthetic.write import is_synthetic, write_databases
from opd_ray.errors import InputError, OutputFolderError

COLUMNS = {
    "trains/trains.csv": "origin_city,destination_city,dep_date,route_index,segment_index,"
    "dep_station_code,dep_station_name,arr_station_code,arr_station_name,dep_datetime,"
    "arr_datetime,duration,train_type,train_no,seat_class,seat_status,price",
    "flights/flights.csv": "origin_city,destination_city,dep_date,route_index,segment_index,"
    "dep_station_code,dep_station_name,arr_station_code,arr_station_name,dep_datetime,"
    "arr_datetime,duration,airline,flight_no,equip_size,equip_type,manufacturer,seat_class,"
    "seat_status,price",
    "hotels/hotels.csv": "name,city,address,latitude,longitude,decoration_time,hotel_star,price,"
    "score,brand,services,tags,stock",
    "attractions/attractions.csv": "attraction_id,attraction_name,city,address,latitude,longitude,"
    "description,rating,opening_time,closing_time,closing_dates,min_visit_hours,max_visit_hours,"
    "ticket_price,attraction_type",
    "restaurants/restaurants.csv": "restaurant_id,restaurant_name,latitude,longitude,"
    "query_latitude,query_longitude,price_per_person,cuisine,opening_time,closing_time,"
    "nearby_attraction_name,rating,tags",
    "locations/locations_coords.csv": "poi_name,latitude,longitude,poi_type",
    "transportation/distance_matrix.csv": "origin,destination,distance_meters,duration_minutes,"
    "cost",
}


def task(number: int = 4, **meta: Any) -> dict[str, Any]:
    said = {
        "org": "Wuhan",
        "dest": ["Nanjing"],
        "days": 2,
        "depart_date": "2025-11-12",
        "return_date": "2025-11-13",
        "depart_weekday": 3,
        "people_number": 2,
        "room_number": 1,
        "hard_constraints": {
            "train_earliest_departure_direct": {"outbound_train_no": "G101"},
            "hotel_highest_rated": {"hotel_name": "Inn, by the River", "hotel_score": 4.9},
            "attraction_must_visit_named": {"attraction_names": ["Clear Lake"]},
            "restaurant_must_eat_named": {"restaurant_name": "Old Wharf - Kitchen"},
        },
    }
    return {"id": str(number), "query": "A trip, please.", "meta_info": said | meta}


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written")
    assert write_databases([task()], path, 5) == [path / "id_4"]
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", COLUMNS)
def test_files_have_the_official_names_and_columns(folder: Path, name: str) -> None:
    head, first, *_ = (folder / "id_4" / name).read_text(encoding="utf-8").splitlines()
    assert head == COLUMNS[name]
    assert first


def test_the_named_entities_are_there_with_what_is_said_of_them(folder: Path) -> None:
    hotels = {row["name"]: row for row in table(folder / "id_4", "hotels/hotels.csv")}
    assert hotels["Inn, by the River"]["score"] == "4.9"
    trains = table(folder / "id_4", "trains/trains.csv")
    gold = next(row for row in trains if row["train_no"] == "G101")
    assert (gold["origin_city"], gold["dep_date"]) == ("Wuhan", "2025-11-12")
    assert {row["dep_date"] for row in trains} == {"2025-11-12", "2025-11-13"}
    back = [row for row in trains if row["origin_city"] == "Nanjing"]
    assert {row["destination_city"] for row in back} == {"Wuhan"}
    names = {r["restaurant_name"] for r in table(folder / "id_4", "restaurants/restaurants.csv")}
    assert "Old Wharf - Kitchen" in names


def test_coordinates_are_the_same_strings_everywhere(folder: Path) -> None:
    places = table(folder / "id_4", "locations/locations_coords.csv")
    known = {row["poi_name"]: (row["latitude"], row["longitude"]) for row in places}
    assert len(set(known.values())) == len(places) == len(known)
    assert all(len(text.split(".")[1]) == 6 for point in known.values() for text in point)
    for name, column in (
        ("hotels/hotels.csv", "name"),
        ("attractions/attractions.csv", "attraction_name"),
        ("restaurants/restaurants.csv", "restaurant_name"),
    ):
        for row in table(folder / "id_4", name):
            assert known[row[column]] == (row["latitude"], row["longitude"])
    for row in table(folder / "id_4", "restaurants/restaurants.csv"):
        near = known[row["nearby_attraction_name"]]
        assert near == (row["query_latitude"], row["query_longitude"])
    for name in ("trains/trains.csv", "flights/flights.csv"):
        for row in table(folder / "id_4", name):
            assert {row["dep_station_name"], row["arr_station_name"]} <= set(known)


def test_the_matrix_has_every_ordered_pair_in_whole_numbers(folder: Path) -> None:
    places = table(folder / "id_4", "locations/locations_coords.csv")
    keys = [f"{row['latitude']},{row['longitude']}" for row in places]
    matrix = table(folder / "id_4", "transportation/distance_matrix.csv")
    pairs = {(row["origin"], row["destination"]) for row in matrix}
    assert pairs == {(a, b) for a in keys for b in keys if a != b}
    assert len(matrix) == len(pairs)
    for row in matrix:
        figures = row["distance_meters"], row["duration_minutes"], row["cost"]
        assert all(figure.isdecimal() for figure in figures)
        assert int(row["duration_minutes"]) > 0
        assert (row["cost"] == "0") == (int(row["distance_meters"]) <= 2000)


def test_a_restaurant_is_the_same_wherever_it_is_listed(folder: Path) -> None:
    listed = table(folder / "id_4", "restaurants/restaurants.csv")
    own = ("query_latitude", "query_longitude", "nearby_attraction_name")
    seen = {tuple(v for k, v in row.items() if k not in own) for row in listed}
    assert len(seen) == len({row["restaurant_name"] for row in listed}) < len(listed)
    per_place: dict[str, int] = {}
    for row in listed:
        per_place[row["nearby_attraction_name"]] = (
            per_place.get(row["nearby_attraction_name"], 0) + 1
        )
    assert len(per_place) == 20
    assert set(per_place.values()) <= {5, 6, 7, 8}


def test_each_direction_has_several_direct_journeys_and_one_with_a_change(folder: Path) -> None:
    for name, number in (("trains/trains.csv", "train_no"), ("flights/flights.csv", "flight_no")):
        rows = table(folder / "id_4", name)
        assert len({row[number] for row in rows}) == len(rows)
        for origin in ("Wuhan", "Nanjing"):
            there = [row for row in rows if row["origin_city"] == origin]
            second = [row for row in there if row["segment_index"] == "2"]
            assert len(second) == 1
            assert 6 <= len({row["route_index"] for row in there}) <= 9


def test_equal_seeds_give_equal_files_whatever_other_tasks_there_are(
    folder: Path, tmp_path: Path
) -> None:
    write_databases([task(9), task()], tmp_path / "same", 5)
    write_databases([task()], tmp_path / "other", 6)
    first = contents(folder / "id_4")
    assert contents(tmp_path / "same" / "id_4") == first
    other = contents(tmp_path / "other" / "id_4")
    assert all(other[name] != first[name] for name in COLUMNS)


def test_a_synthetic_folder_says_so_and_no_other_is_touched(folder: Path, tmp_path: Path) -> None:
    assert is_synthetic(folder)
    assert is_synthetic(folder / "id_4")
    assert json.loads((folder / "synthetic.json").read_text())["synthetic"] is True
    (tmp_path / "id_4").mkdir()
    assert not is_synthetic(tmp_path)
    with pytest.raises(OutputFolderError, match="not synthetic; give another folder"):
        write_databases([task()], tmp_path, 5)
    assert list(tmp_path.iterdir()) == [tmp_path / "id_4"]


def wish(kind: str, **keys: Any) -> dict[str, Any]:
    return {"hard_constraints": {kind: keys}}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"days": 1}, "task 4: meta_info: days 1, .*at least 2 days"),
        ({"depart_date": "12 Nov"}, "task 4: meta_info: Invalid isoformat string: '12 Nov'"),
        ({"dest": ["A", "B"]}, "task 4: meta_info: too many values to unpack"),
        ({"return_date": "2025-11-14"}, "2 days from 2025-11-12 end on 2025-11-13; give rows"),
        (wish("hotel_quiet", hotel_name="A"), "hard_constraints.hotel_quiet: no known kind"),
        (wish("hotel_highest_rated"), "hotel_highest_rated: no hotel_name; add it"),
        (
            wish("hotel_cheapest_star", hotel_name="A", hotel_star="three"),
            "hotel_cheapest_star.hotel_star: 'three' is no number",
        ),
        (
            wish("train_cheapest_direct"),
            "train_cheapest_direct: no outbound_train_no or inbound_train_no; add it",
        ),
        (
            wish("hotel_cheapest_brand", hotel_name="A", constraint_context="cheap"),
            "task 4: hotel_cheapest_brand: constraint_context: 'cheap' names none of Ji Hotel",
        ),
        (
            wish("attraction_must_visit_named", attraction_names="Lake"),
            "attraction_names: 'Lake' is no list of names",
        ),
        (
            wish("flight_departure_time_range", outbound_flight_no="CA1", constraint_context="6"),
            "task 4: flight_departure_time_range: constraint_context: '6' has no range of time",
        ),
    ],
)
def test_what_no_database_can_be_made_of_is_named(
    tmp_path: Path, meta: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_databases([task(3), task(**meta)], tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_no_task_a_row_without_meta_info_and_one_id_twice_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task to make a database for"):
        write_databases([], tmp_path, 0)
    with pytest.raises(InputError, match="task 7: meta_info: no object there"):
        write_databases([{"id": "7"}], tmp_path, 0)
    with pytest.raises(InputError, match=r"a row .*\.\./x.* without a number as its id; give rows"):
        write_databases([task() | {"id": "../x"}], tmp_path, 0)
    with pytest.raises(InputError, match="task 4: twice among the tasks"):
        write_databases([task(), task()], tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sentence", "minutes"),
    [
        ("must leave between 6:00 AM and 10:00 AM", (360, 600)),
        ("must arrive between 8:00 PM and 12:00 AM.", (1200, 1440)),
        ("must depart between 13:00 and 17:00 in the afternoon.", (780, 1020)),
        ("between 11:00 AM and 3:00 PM", (660, 900)),
        ("between 12:00 PM and 2:30 PM", (720, 870)),
    ],
)
def test_ranges_of_time_are_read_from_sentences(sentence: str, minutes: tuple[int, int]) -> None:
    assert clock_range("task 4", {"constraint_context": sentence}) == minutes


def test_brands_are_read_in_both_languages() -> None:
    said = {"constraint_context": 'the cheapest of the "全季" brand'}
    assert named("task 4", said, BRANDS) == "Ji Hotel"
    said = {"constraint_context": 'the highest-rated among "Hanting" hotels'}
    assert named("task 4", said, BRANDS) == "Hanting Hotel"


def test_distances_on_the_map() -> None:
    # A degree of latitude is 6371 km * pi / 180; Beijing and Shanghai lie 1067 km apart.
    assert kilometres((30.0, 120.0), (31.0, 120.0)) == pytest.approx(111.195, abs=0.001)
    assert kilometres(city_centre("Beijing"), city_centre("Shanghai")) == pytest.approx(1067, abs=2)
    assert city_centre("Nowhere") == city_centre("Nowhere") != city_centre("Elsewhere")
    assert city_between("Shanghai", "Nanjing") == "Suzhou"
    # Hefei is nearest to Wuhan, but off the way to Harbin.
    assert city_between("Wuhan", "Harbin") == "Shenyang"


def test_no_point_is_given_twice() -> None:
    class Repeating(random.Random):
        draws = iter([1.0, 500.0, 1.0, 500.0, 2.0, 500.0])

        def uniform(self, a: float, b: float) -> float:
            return next(self.draws)

    surveyor = Surveyor(Repeating())
    first, second = (surveyor.place(name, "hotel", (30.0, 120.0), 0, 900) for name in "ab")
    assert first.key != second.key
    assert next(Repeating.draws, None) is None


def test_ways_are_walked_up_to_two_kilometres_and_paid_beyond() -> None:
    here = Place("a", "hotel", "30.000000", "120.000000")
    # 0.01 degrees north are 1.112 km, 1446 m by road: 19 minutes on foot.
    near = road(here, Place("b", "hotel", "30.010000", "120.000000"))
    assert (near.metres, near.minutes, near.cost) == (1446, 19, 0)
    # 0.1 degrees: 14,455 m; 4 + 28.9 minutes; 10 yuan for 3 km and 2 for each further one.
    far = road(here, Place("c", "hotel", "30.100000", "120.000000"))
    assert (far.metres, far.minutes, far.cost) == (14455, 33, 33)
