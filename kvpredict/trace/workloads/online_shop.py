"""Online shop: sessions that browse, fill a cart and check out, under campaigns and with new products.

What the cache behind a shop's site sees. Popular products follow Zipf's law; a visit reads a category page, then
product records with their images, and sometimes writes a cart that is read once more at the checkout. Traffic has a
daily rhythm. A campaign multiplies it for some hours and points half of it at a few products; new products appear all
the time and are looked at most when they are new. Carts and images are of very different sizes and worth.

Popularity: Breslau et al., INFOCOM 1999. Sessions, and how few of them buy: Menascé et al., "A Methodology for Workload
Characterization of E-commerce Sites", EC 1999. Flash crowds: Jung, Krishnamurthy and Rabinovich, WWW 2002.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import (
    DAY,
    day_curve,
    lognormal_sizes,
    rank_in_group,
    rhythm,
    spread_keys,
    zipf_ranks,
)
from kvpredict.trace.workloads._events import Events

__all__ = ["OnlineShop"]


@dataclass(frozen=True)
class OnlineShop(Workload):
    """Sessions on a shop's site; sizes in bytes.

    Parameters
    ----------
    requests : int, default 1_000_000
    products : int, default 50_000
    categories : int, default 300
        Category pages; a session starts on one.
    customers : int, default 80_000
    alpha : float, default 0.9
        Skew of products, and of categories.
    days : float, default 14
        Length of the trace.
    amplitude : float, default 0.7
        Height of the daily rhythm, from 0 (flat) to 1.
    views : float, default 5
        Mean product views of a session (geometric).
    think_seconds : float, default 25
        Mean time between two views.
    cart_share : float, default 0.1
        Share of views that put the product into the cart.
    checkout_share : float, default 0.3
        Share of sessions with a cart that end in a checkout.
    new_share : float, default 0.2
        Share of products that are launched during the trace; nobody asks for them before.
    novelty_share : float, default 0.1
        Share of views that come from the list of newest products.
    campaigns : int, default 4
    campaign_hours : float, default 6
        How long a campaign lasts.
    campaign_boost : float, default 4
        How many times the usual traffic a campaign brings.
    campaign_share : float, default 0.5
        Share of views during a campaign that go to its products.
    campaign_products : int, default 40
        Products of a campaign.

    The columns are ``op`` (get, put) and ``kind`` (category, product, image, cart, customer, stock).
    """

    name = "online_shop"

    requests: int = param(1_000_000, 1)
    products: int = param(50_000, 2)
    categories: int = param(300, 1)
    customers: int = param(80_000, 1)
    alpha: float = param(0.9, 0, 10)
    days: float = param(14.0, 0.01, 3650)
    amplitude: float = param(0.7, 0, 1)
    views: float = param(5.0, 1, 1000)
    think_seconds: float = param(25.0, 0)
    cart_share: float = param(0.1, 0, 1)
    checkout_share: float = param(0.3, 0, 1)
    new_share: float = param(0.2, 0, 0.9)
    novelty_share: float = param(0.1, 0, 1)
    campaigns: int = param(4, 0, 1000)
    campaign_hours: float = param(6.0, 0)
    campaign_boost: float = param(4.0, 1, 1000)
    campaign_share: float = param(0.5, 0, 1)
    campaign_products: int = param(40, 1)

    def _generate(self, rng: np.random.Generator) -> Trace:
        begins = np.sort(rng.uniform(0, self.days * DAY, self.campaigns))
        # A session has at least three events, so this many sessions always suffice; most are then not needed.
        counts = rng.geometric(1 / self.views, -(-self.requests // 3))
        counts = counts[: int(np.searchsorted(np.cumsum(1 + 2 * counts), self.requests)) + 1]
        sessions = np.arange(counts.size)
        start = rhythm(rng, counts.size, self._traffic(begins), self.days * DAY)

        session = np.repeat(sessions, counts)
        gap = rng.exponential(self.think_seconds, session.size)
        waited = np.cumsum(gap)
        time = start[session] + 1 + waited - np.repeat((waited - gap)[np.cumsum(counts) - counts], counts)
        product = self._products(rng, time, begins)
        add = rng.random(session.size) < self.cart_share

        events = Events(self._sizes(rng, counts.size), ("get", "put"))
        categories = spread_keys(rng, self.categories)
        category = categories[zipf_ranks(rng, sessions.size, self.categories, self.alpha)]
        events.add(sessions, start, "category", category, "get")
        events.add(session, time, "product", product, "get")
        events.add(session, time + 0.05, "image", product, "get")
        events.add(session[add], time[add] + 5, "cart", session[add], "put")

        last = np.flatnonzero(rank_in_group(counts) == np.repeat(counts - 1, counts))
        bought = np.bincount(session[add], minlength=counts.size) > 0
        buyer = sessions[bought & (rng.random(counts.size) < self.checkout_share)]
        done = time[last[buyer]] + 10
        customer = rng.integers(0, self.customers, buyer.size)
        events.add(buyer, done, "cart", buyer, "get")
        events.add(buyer, done + 0.05, "customer", customer, "get")
        sold = add & np.isin(session, buyer)
        events.add(session[sold], done[np.searchsorted(buyer, session[sold])] + 0.1, "stock", product[sold], "put")
        return events.trace(self.requests)

    def _traffic(self, begins: np.ndarray) -> np.ndarray:
        """Return the relative rate of sessions in each minute."""
        curve = day_curve(self.days, self.amplitude, peak_hour=20.0)
        minute = (np.arange(curve.size) + 0.5) * 60
        running = self._running(minute, begins) >= 0
        return np.where(running, curve * self.campaign_boost, curve)

    def _running(self, time: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Return the campaign that runs at each time, -1 for none."""
        if begins.size == 0:
            return np.full(time.size, -1)
        latest = np.searchsorted(begins, time, side="right") - 1
        return np.where((latest >= 0) & (time < begins[latest] + self.campaign_hours * 3600), latest, -1)

    def _products(self, rng: np.random.Generator, time: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Return the product of each view."""
        n = time.size
        order = spread_keys(rng, self.products)  # by popularity
        new = rng.choice(self.products, int(self.products * self.new_share), replace=False)
        launch = np.zeros(self.products)
        launch[new] = rng.uniform(0, self.days * DAY, new.size)
        product = order[zipf_ranks(rng, n, self.products, self.alpha)]
        early = np.flatnonzero(launch[product] > time)
        old = order[launch[order] == 0]
        product[early] = old[zipf_ranks(rng, early.size, old.size, self.alpha)]

        newest = new[np.argsort(launch[new], kind="stable")]
        place = np.searchsorted(launch[newest], time, side="right") - rng.geometric(0.05, n)
        novel = (rng.random(n) < self.novelty_share) & (place >= 0)
        product[novel] = newest[place[novel]]

        running = self._running(time, begins)
        drawn = np.flatnonzero((running >= 0) & (rng.random(n) < self.campaign_share))
        each = min(self.campaign_products, old.size)
        chosen = np.empty((self.campaigns, each), np.int64)
        for campaign in chosen:
            campaign[:] = rng.choice(old, each, replace=False)
        product[drawn] = chosen[running[drawn], rng.integers(0, each, drawn.size)]
        return product

    def _sizes(self, rng: np.random.Generator, sessions: int) -> dict[str, np.ndarray]:
        return {
            "category": lognormal_sizes(rng, self.categories, 40_000, 0.5),
            "product": lognormal_sizes(rng, self.products, 4_000, 0.6),
            "image": lognormal_sizes(rng, self.products, 90_000, 0.8),
            "cart": lognormal_sizes(rng, sessions, 600, 0.5),
            "customer": lognormal_sizes(rng, self.customers, 1_200, 0.3),
            "stock": np.full(self.products, 64, np.int64),
        }
