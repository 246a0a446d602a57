"""Where the cities lie, and what lies between two of them."""

from __future__ import annotations

import math

from opd_ray.seeds import derive_seed

CITIES: dict[str, tuple[float, float]] = {
    "Beijing": (39.904, 116.407),
    "Changchun": (43.817, 125.324),
    "Changsha": (28.228, 112.939),
    "Chengdu": (30.573, 104.067),
    "Chongqing": (29.563, 106.552),
    "Dalian": (38.914, 121.615),
    "Enshi": (30.272, 109.488),
    "Fuzhou": (26.075, 119.297),
    "Guangzhou": (23.129, 113.264),
    "Guilin": (25.274, 110.290),
    "Guiyang": (26.647, 106.630),
    "Hangzhou": (30.274, 120.155),
    "Harbin": (45.803, 126.535),
    "Hefei": (31.821, 117.227),
    "Hohhot": (40.842, 111.749),
    "Jinan": (36.651, 117.120),
    "Kunming": (24.880, 102.833),
    "Lanzhou": (36.061, 103.834),
    "Nanchang": (28.682, 115.858),
    "Nanjing": (32.060, 118.797),
    "Nanning": (22.817, 108.366),
    "Ningbo": (29.868, 121.544),
    "Qingdao": (36.067, 120.383),
    "Quanzhou": (24.874, 118.676),
    "Sanya": (18.253, 109.512),
    "Shanghai": (31.230, 121.474),
    "Shaoxing": (30.030, 120.580),
    "Shenyang": (41.805, 123.431),
    "Shenzhen": (22.543, 114.058),
    "Shijiazhuang": (38.042, 114.515),
    "Suzhou": (31.299, 120.585),
    "Taiyuan": (37.870, 112.549),
    "Tianjin": (39.343, 117.362),
    "Urumqi": (43.825, 87.617),
    "Wuhan": (30.593, 114.305),
    "Xi'an": (34.342, 108.940),
    "Xiamen": (24.480, 118.089),
    "Zhengzhou": (34.747, 113.625),
    "Zhuhai": (22.271, 113.577),
}


def city_centre(name: str) -> tuple[float, float]:
    """Latitude and longitude in degrees; of a city not in the table, always the same invented."""
    if name in CITIES:
        return CITIES[name]
    drawn = derive_seed("city", name)
    return 24 + drawn % 16_000 / 1000, 105 + drawn // 16_000 % 15_000 / 1000


def kilometres(start: tuple[float, float], end: tuple[float, float]) -> float:
    """The length of the great circle between two points in degrees."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*start, *end))
    half = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * 6371 * math.asin(math.sqrt(half))


def city_between(origin: str, destination: str) -> str:
    """The city where one changes with the least way round."""
    start, end = city_centre(origin), city_centre(destination)
    others = (name for name in CITIES if name not in (origin, destination))
    return min(others, key=lambda c: kilometres(start, CITIES[c]) + kilometres(CITIES[c], end))
