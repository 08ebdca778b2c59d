"""Payments: cards, accounts and merchants, paydays and bursts, balances that must be fresh, and fraud scans.

What the store of a payment processor sees. A payment reads the card and its limit, the account's balance, which must
be the last one written, and the merchant, and then writes the balance. Spending jumps on payday and dies down over the
following days; now and then one merchant draws a burst of payments (a ticket sale). A fraud detector reads the cards
in long runs, each from where the last one ended.

Bursts: Jung, Krishnamurthy and Rabinovich, "Flash Crowds and Denial of Service Attacks", WWW 2002. Spending after
payday: Gelman et al., "Harnessing Naturally Occurring Data to Measure the Response of Spending to Income", Science
345, 2014. Scans against a hot set: Johnson and Shasha, VLDB 1994.
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

__all__ = ["Payments"]


@dataclass(frozen=True)
class Payments(Workload):
    """Look-ups and writes of a payment processor; sizes in bytes.

    Parameters
    ----------
    requests : int, default 1_000_000
    cards : int, default 120_000
    accounts : int, default 100_000
        Card ``i`` draws on account ``i`` modulo this number.
    merchants : int, default 8_000
    card_alpha : float, default 0.6
        Skew of cards.
    merchant_alpha : float, default 1.0
        Skew of merchants.
    days : float, default 35
        Length of the trace.
    amplitude : float, default 0.8
        Height of the daily rhythm, from 0 (flat) to 1.
    payday_every : float, default 14
        Days between paydays; the first falls on the middle of the first period.
    payday_boost : float, default 2
        How many times the usual spending payday adds; it fades with ``payday_days``.
    payday_days : float, default 2
        Days in which the extra spending falls by a factor of e.
    declined_share : float, default 0.04
        Share of payments that are refused and write nothing.
    check_share : float, default 0.3
        Share of customers' visits that only look at the balance.
    bursts : int, default 12
    burst_minutes : float, default 10
        How long a burst lasts.
    burst_share : float, default 0.05
        Share of all payments that belong to bursts.
    scan_share : float, default 0.15
        Share of requests that are the fraud detector's.
    scan_length : int, default 10_000
        Cards of a scan.

    The columns are ``op`` (get, get_fresh for a read that must see the last write, put, scan) and ``kind`` (card,
    limit, account, merchant).
    """

    name = "payments"

    requests: int = param(1_000_000, 1)
    cards: int = param(120_000, 1)
    accounts: int = param(100_000, 1)
    merchants: int = param(8_000, 1)
    card_alpha: float = param(0.6, 0, 10)
    merchant_alpha: float = param(1.0, 0, 10)
    days: float = param(35.0, 0.01, 3650)
    amplitude: float = param(0.8, 0, 1)
    payday_every: float = param(14.0, 0.1)
    payday_boost: float = param(2.0, 0, 1000)
    payday_days: float = param(2.0, 0.01)
    declined_share: float = param(0.04, 0, 1)
    check_share: float = param(0.3, 0, 1)
    bursts: int = param(12, 0, 10_000)
    burst_minutes: float = param(10.0, 0.1)
    burst_share: float = param(0.05, 0, 1)
    scan_share: float = param(0.15, 0, 1)
    scan_length: int = param(10_000, 1)

    def _generate(self, rng: np.random.Generator) -> Trace:
        span = self.days * DAY
        scanned = round(self.requests * self.scan_share)
        # The scans come first in the order of groups and so are kept whole; each visit has at least one request.
        visits = self.requests - scanned
        paying = rng.random(visits) >= self.check_share
        approved = paying & (rng.random(visits) >= self.declined_share)
        steps = np.where(approved, 5, np.where(paying, 4, 1))
        visits = min(visits, int(np.searchsorted(np.cumsum(steps), visits)) + 1)
        paying, approved = paying[:visits], approved[:visits]

        time = rhythm(rng, visits, self._spending(), span)
        card = spread_keys(rng, self.cards)[zipf_ranks(rng, visits, self.cards, self.card_alpha)]
        merchant = spread_keys(rng, self.merchants)[zipf_ranks(rng, visits, self.merchants, self.merchant_alpha)]
        self._burst(rng, span, time, merchant, paying)
        account = card % self.accounts

        events = Events(self._sizes(rng), ("get", "get_fresh", "put", "scan"))
        scans = -(-scanned // self.scan_length)
        lengths = np.full(scans, self.scan_length)
        if scans:
            lengths[-1] = scanned - self.scan_length * (scans - 1)
        begin = (np.arange(scans) + rng.random(scans)) * span / max(scans, 1)
        at = np.repeat(begin, lengths) + 0.002 * rank_in_group(lengths)
        events.add(np.zeros(scanned, np.int64), at, "card", np.arange(scanned) % self.cards, "scan")
        visit = np.arange(1, visits + 1)
        for delay, kind, index, op, who in (
            (0.0, "card", card, "get", paying),
            (0.002, "limit", card, "get", paying),
            (0.004, "account", account, "get_fresh", np.ones(visits, bool)),
            (0.006, "merchant", merchant, "get", paying),
            (0.05, "account", account, "put", approved),
        ):
            events.add(visit[who], time[who] + delay, kind, index[who], op)
        return events.trace(self.requests)

    def _spending(self) -> np.ndarray:
        """Return the relative rate of visits in each minute: the day's rhythm, raised after each payday."""
        curve = day_curve(self.days, self.amplitude, peak_hour=17.0)
        since = (np.arange(curve.size) / 1440 - self.payday_every / 2) % self.payday_every
        return curve * (1 + self.payday_boost * np.exp(-since / self.payday_days))

    def _burst(
        self, rng: np.random.Generator, span: float, time: np.ndarray, merchant: np.ndarray, paying: np.ndarray
    ) -> None:
        """Move some payments, in place, into bursts at one merchant each."""
        if not self.bursts:
            return
        moved = np.flatnonzero(paying & (rng.random(time.size) < self.burst_share))
        which = rng.integers(0, self.bursts, moved.size)
        begin = rng.uniform(0, max(span - self.burst_minutes * 60, 0), self.bursts)
        time[moved] = begin[which] + rng.random(moved.size) * self.burst_minutes * 60
        merchant[moved] = rng.integers(0, self.merchants, self.bursts)[which]

    def _sizes(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "card": lognormal_sizes(rng, self.cards, 350, 0.2),
            "limit": np.full(self.cards, 48, np.int64),
            "account": lognormal_sizes(rng, self.accounts, 500, 0.3),
            "merchant": lognormal_sizes(rng, self.merchants, 2_000, 0.6),
        }
