"""A web API over a SQLite file: a product catalogue whose reads come from a cache and whose writes go through it.

    python examples/web_api.py [--database shop.db] [--port 8000]

    curl localhost:8000/products/7
    curl -X PUT localhost:8000/products/7 -H 'Content-Type: application/json' -d '{"name": "Tea", "price": "4.20"}'
    curl localhost:8000/metrics

What the cache does here: one query for any number of requests that miss the same product; a product that does not exist
is remembered for a second, so that asking for it again and again does not reach the database; values are fetched anew
in the background before they are a minute old; while the database is locked or gone, requests get the last value for up
to five minutes more; a write is in the database before it is acknowledged and nobody reads the old value afterwards;
and the policy is chosen by what the requests turn out to be.
"""

import argparse
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel

from kvpredict.cache import Cache, Expiry, Loads, WriteThrough, register_metrics


class Product(BaseModel):
    """What a client sends."""

    name: str
    price: Decimal


def make_app(database: Path) -> FastAPI:
    """Return the service over ``database``, which is made and filled where it is not there."""

    def connect() -> "closing[sqlite3.Connection]":
        return closing(sqlite3.connect(database, timeout=1.0, isolation_level=None))

    with connect() as db:
        db.execute("CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name TEXT, price TEXT)")
        if db.execute("SELECT COUNT(*) FROM products").fetchone() == (0,):
            rows = [(n, f"Product {n}", str(Decimal(n) / 10)) for n in range(1, 1001)]
            db.executemany("INSERT INTO products VALUES (?, ?, ?)", rows)

    def load(number: int) -> dict[str, Any]:
        queries[0] += 1
        with connect() as db:
            row = db.execute("SELECT id, name, price FROM products WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LookupError(f"no product {number}")
        return dict(zip(("id", "name", "price"), row, strict=True))

    def save(number: int, product: dict[str, Any]) -> None:
        with connect() as db:
            db.execute("REPLACE INTO products VALUES (:id, :name, :price)", product)

    def erase(number: int) -> None:
        with connect() as db:
            db.execute("DELETE FROM products WHERE id = ?", (number,))

    queries = [0]
    cache: Cache[int, dict[str, Any]] = Cache(
        200,
        "auto",
        loader=load,
        expiry=Expiry(ttl=60, jitter=0.1, refresh=0.8, stale=300),
        loads=Loads(limit=16, timeout=2.0, negative_ttl=1.0, negative=(LookupError,)),
    )
    store = WriteThrough(cache, save, erase)
    registry = CollectorRegistry()
    register_metrics("products", cache, registry=registry)
    app = FastAPI(title="Products")

    # Plain functions: FastAPI runs them in threads, as sqlite3 wants it. A coroutine would await cache.aget_or_load.
    @app.get("/products/{number}")
    def read(number: int) -> dict[str, Any]:
        try:
            return cache.get_or_load(number)
        except LookupError:
            raise HTTPException(404, f"no product {number}") from None

    @app.put("/products/{number}")
    def write(number: int, product: Product) -> dict[str, Any]:
        row = {"id": number, "name": product.name, "price": str(product.price)}
        store.put(number, row)
        return row

    @app.delete("/products/{number}", status_code=204)
    def remove(number: int) -> None:
        store.delete(number)

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        counts = cache.stats()
        return {**counts.last(60)._asdict(), "policy": cache.policy.name, "queries": queries[0]}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=Path, default=Path("shop.db"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(options.database), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
