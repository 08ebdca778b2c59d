"""A payments look-up that is never stale, in any number of processes over one database.

    python examples/payments.py [--database payments.db] [--port 8002]

    curl localhost:8002/accounts/7
    curl -X POST 'localhost:8002/transfers?source=7&target=8&cents=150'

A limit decision needs an account's profile: a sum over its whole history, which is slow to build, and which must be of
this moment. So every read asks the database for the account's version, one look-up of an index, and serves the cached
profile only if it is of that version. A time to live cannot do this, and neither can messages between processes, which
may come late. What the cache saves is the building: one for each change of an account, however many ask.

The version guards the other direction, too: a profile that was being built while the account changed carries its old
version, and can neither replace a newer one nor be served once the version is asked for.
"""

import argparse
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException

from kvpredict.cache import Cache, Loaded, Loads

ACCOUNTS, OPENING = 100, 10_000


def make_app(database: Path) -> FastAPI:
    """Return the service over ``database``, which is made and filled where it is not there."""

    def connect() -> "closing[sqlite3.Connection]":
        return closing(sqlite3.connect(database, timeout=10.0, isolation_level=None))

    with connect() as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)")
        db.execute("CREATE TABLE IF NOT EXISTS entries (account INTEGER, cents INTEGER NOT NULL)")
        db.execute("CREATE INDEX IF NOT EXISTS by_account ON entries (account)")
        if db.execute("SELECT COUNT(*) FROM accounts").fetchone() == (0,):
            db.executemany("INSERT INTO accounts VALUES (?, 1)", [(n,) for n in range(ACCOUNTS)])
            db.executemany("INSERT INTO entries VALUES (?, ?)", [(n, OPENING) for n in range(ACCOUNTS)])
        db.execute("COMMIT")

    def build(account: int) -> Loaded:
        built[0] += 1
        with connect() as db:
            db.execute("BEGIN")  # one state of the database for both queries
            row = db.execute("SELECT version FROM accounts WHERE id = ?", (account,)).fetchone()
            if row is None:
                raise LookupError(f"no account {account}")
            cents, count = db.execute(
                "SELECT COALESCE(SUM(cents), 0), COUNT(*) FROM entries WHERE account = ?", (account,)
            ).fetchone()
        profile = {"account": account, "version": row[0], "cents": cents, "entries": count}
        return Loaded(profile, version=row[0])

    built = [0]
    profiles: Cache[int, dict[str, Any]] = Cache(ACCOUNTS // 2, "s3fifo", loader=build, loads=Loads(timeout=5.0))
    app = FastAPI(title="Payments")

    def fresh(account: int) -> dict[str, Any]:
        with connect() as db:
            row = db.execute("SELECT version FROM accounts WHERE id = ?", (account,)).fetchone()
        if row is None:
            raise LookupError(f"no account {account}")
        profile = profiles.get_or_load(account)
        while profile["version"] < row[0]:  # of before this request
            profiles.invalidate(account, before=row[0])
            profile = profiles.get_or_load(account)
        return profile

    @app.get("/accounts/{account}")
    def read(account: int) -> dict[str, Any]:
        try:
            return fresh(account)
        except LookupError as error:
            raise HTTPException(404, str(error)) from None

    @app.post("/transfers")
    def transfer(source: int, target: int, cents: int) -> dict[str, str]:
        if cents <= 0 or source == target:
            raise HTTPException(422, "a transfer is of a positive amount between two accounts")
        with connect() as db:
            db.execute("BEGIN IMMEDIATE")
            for account, amount in ((source, -cents), (target, cents)):
                changed = db.execute("UPDATE accounts SET version = version + 1 WHERE id = ?", (account,)).rowcount
                if changed == 0:
                    db.execute("ROLLBACK")
                    raise HTTPException(404, f"no account {account}")
                db.execute("INSERT INTO entries VALUES (?, ?)", (account, amount))
            if db.execute("SELECT SUM(cents) FROM entries WHERE account = ?", (source,)).fetchone()[0] < 0:
                db.execute("ROLLBACK")
                raise HTTPException(409, "the account does not hold that much")
            db.execute("COMMIT")
        return {"status": "done"}

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        return {**profiles.stats()._asdict(), "marks": None, "built": built[0]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=Path, default=Path("payments.db"))
    parser.add_argument("--port", type=int, default=8002)
    options = parser.parse_args()
    uvicorn.run(make_app(options.database), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
