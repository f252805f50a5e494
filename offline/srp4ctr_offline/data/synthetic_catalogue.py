"""Items of the synthetic data set: attributes, popularity, launch, and the quality that attributes partly explain."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr_offline.data.synthetic_config import CATALOGUE_STREAM, SyntheticConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CATEGORIES = (
    *("audio", "books", "cameras", "cycling", "fashion", "furniture"),
    *("games", "garden", "kitchen", "outdoor", "toys", "travel"),
)
TAGS = ("eco", "gift", "handmade", "imported", "limited", "new", "refurbished", "sale")

ANY = -1
"""In place of a category: whatever is popular."""

NO_BRAND = -1

_COLD_SHARE = 0.05
_COLD_BOOST = 2.0
_ITEMS_PER_BRAND = 25


@dataclass(frozen=True, eq=False)
class Shelf:
    """The items on offer in one period, sorted by category, to be drawn by popularity.

    `items` [S] item numbers, `cumulative` [S] their cumulated popularity, `edges` [C+1] its values at the borders
    between the C categories.
    """

    items: Ints
    cumulative: Floats
    edges: Floats

    @classmethod
    def stock(cls, items: Ints, category: Ints, popularity: Floats) -> Self:
        """Put `items` on the shelf; `category` and `popularity` are those of the whole catalogue."""
        items = items[np.argsort(category[items], kind="stable")]
        cumulative = np.cumsum(popularity[items])
        ends = np.searchsorted(category[items], np.arange(len(CATEGORIES)), side="right")
        return cls(items, cumulative, np.concatenate([[0.0], cumulative[ends - 1]]))

    def draw(self, category: Ints, uniform: Floats) -> Ints:
        """Item numbers [...] of the categories [...] (or ANY), by popularity, from uniform numbers [...]."""
        start = np.where(category == ANY, 0.0, self.edges[category])
        end = self.edges[category + 1]
        end = np.where(category == ANY, self.edges[-1], end)
        place = np.searchsorted(self.cumulative, start + uniform * (end - start), side="right")
        return self.items[np.minimum(place, len(self.items) - 1)]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All M items. `category`, `brand` (NO_BRAND for some) and `quality` (part of the logit of a click) are [M].

    The last items, a twentieth of all, are launched when the test part begins: `early` lacks them.
    """

    category: Ints
    brand: Ints
    quality: Floats
    early: Shelf
    late: Shelf
    table: pl.DataFrame


def make_catalogue(config: SyntheticConfig) -> Catalogue:
    """Draw the catalogue; it depends on the seed and the number of items only."""
    streams = map(np.random.default_rng, np.random.SeedSequence((config.seed, CATALOGUE_STREAM)).spawn(8))
    count = config.items
    number = np.arange(count)
    # Each category gets one of the first items, so that none is empty.
    category = np.where(
        number < len(CATEGORIES), number, next(streams).integers(len(CATEGORIES), size=count)
    ).astype(np.int64)

    brands = max(4, count // _ITEMS_PER_BRAND)
    brand_stream = next(streams)
    brand = np.floor(brands * brand_stream.random(count) ** 2).astype(np.int64)
    brand[brand_stream.random(count) < 0.15] = NO_BRAND

    category_price = next(streams).normal(3.0, 0.7, len(CATEGORIES))
    log_price = category_price[category] + next(streams).normal(0.0, 0.5, count)

    tag_stream = next(streams)
    tagged = {tag: tag_stream.random(count) < 0.2 for tag in TAGS}

    effects = next(streams)
    quality = effects.normal(0, 0.3, len(CATEGORIES))[category]
    # NO_BRAND reads the last effect, which is no brand's.
    quality += effects.normal(0, 0.4, brands + 1)[brand]
    for flags in tagged.values():
        quality += effects.normal(0, 0.3) * flags
    quality -= 0.3 * (log_price - 3.0)
    quality += effects.normal(0, 0.5, count)

    cold = max(1, int(_COLD_SHARE * count))
    popularity = (1.0 / (1.0 + next(streams).permutation(count))).astype(np.float64)
    early = Shelf.stock(number[: count - cold], category, popularity)
    # What has just been launched is shown more than its popularity asks for.
    popularity[count - cold :] *= _COLD_BOOST
    late = Shelf.stock(number, category, popularity)

    table = pl.DataFrame(
        {
            "number": number,
            "category": pl.Series(CATEGORIES).gather(category),
            "brand": pl.Series([*(f"brand-{i}" for i in range(brands)), None])[brand],
            "price": np.round(np.exp(log_price), 2),
            **tagged,
        }
    ).select(
        pl.format("i{}", "number").alias("item_id"),
        pl.format("{} {} {}", pl.col("brand").fill_null("no-name"), "category", "number").alias("title"),
        "category",
        "brand",
        pl.concat_list([pl.when(tag).then(pl.lit(tag)) for tag in TAGS]).list.drop_nulls().alias("tags"),
        "price",
    )
    return Catalogue(category, brand, quality, early, late, table)
