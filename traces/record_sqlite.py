"""Record the page accesses of SQLite under a shop's query mix: how traces/sqlite_shop.csv.* was made.

SQLite opens a real database file through a VFS (a layer between SQLite and the file) that notes each page read and
written, then does it. SQLite's own page cache holds a handful of pages, so the trace is what a database's buffer pool
would be asked for: index roots and leaves, table pages, and full scans. The queries are drawn from a seed and the clock
is the simulated shop's, so the same SQLite version records the same trace on any machine.

    python traces/record_sqlite.py traces/sqlite_shop.csv.xz

Needs apsw and numpy; takes about ten seconds. The suffix of the output (.csv, .gz, .xz, .zst) chooses its compression.
"""

import argparse
import gzip
import hashlib
import io
import lzma
import tempfile
from pathlib import Path

import apsw
import numpy as np

PAGE = 4096
DAY = 86_400
CUSTOMERS, PRODUCTS, ORDERS, REVIEWS, CATEGORIES = 45_000, 24_000, 130_000, 70_000, 240

SCHEMA = """
create table product(id integer primary key, category int, price int, stock int, title text, description blob);
create table customer(id integer primary key, email text unique, name text, address blob);
create table orders(id integer primary key, customer int, day int, status int, note blob);
create table line(orders int, product int, quantity int, price int, primary key(orders, product)) without rowid;
create table review(id integer primary key, product int, customer int, stars int, body blob);
create index product_category on product(category, price);
create index orders_customer on orders(customer);
create index orders_day on orders(day);
create index line_product on line(product);
create index review_product on review(product);
"""


class Recorder:
    """Rows of the trace, and what the shop is doing at the moment."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, str, str]] = []  # milliseconds, page, op, query
        self.now = 0
        self.query = ""
        self.on = False

    def note(self, op: str, amount: int, offset: int) -> None:
        # Reads of a few bytes ask whether another process changed the file; they are no page accesses.
        if self.on and amount == PAGE:
            self.rows.append((self.now, offset // PAGE + 1, op, self.query))


class RecordingVFS(apsw.VFS):
    """The default VFS, with every read and write of the main database file noted."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__("recording", "")

    def xOpen(self, name, flags):  # noqa: N802
        return RecordingFile(self.recorder, name, flags)


class RecordingFile(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name, flags) -> None:
        super().__init__("", name, flags)
        self.recorder = recorder
        self.main = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)

    def xRead(self, amount, offset):  # noqa: N802
        if self.main:
            self.recorder.note("read", amount, offset)
        return super().xRead(amount, offset)

    def xWrite(self, data, offset):  # noqa: N802
        if self.main:
            self.recorder.note("write", len(data), offset)
        return super().xWrite(data, offset)


def fill(path: Path, rng: np.random.Generator) -> None:
    """Make the database as a shop of some age would have it: rows in the order in which they arrived."""
    db = apsw.Connection(str(path))
    db.execute(f"pragma page_size={PAGE}; pragma journal_mode=off; pragma synchronous=off;" + SCHEMA).fetchall()

    def blobs(n: int, low: int, high: int):
        return (rng.bytes(int(size)) for size in rng.integers(low, high, n))

    category = rng.integers(0, CATEGORIES, PRODUCTS)
    price = rng.integers(1, 500, PRODUCTS)
    buyers = skewed(rng, ORDERS, CUSTOMERS, 0.5)
    with db:
        db.executemany(
            "insert into product values(?,?,?,?,?,?)",
            (
                (i, int(category[i]), int(price[i]), 1000, f"product {i}", b)
                for i, b in enumerate(blobs(PRODUCTS, 400, 1100))
            ),
        )
        db.executemany(
            "insert into customer values(?,?,?,?)",
            ((i, f"{mix(i):08x}@example.org", f"name {i}", b) for i, b in enumerate(blobs(CUSTOMERS, 150, 400))),
        )
        db.executemany(
            "insert into orders values(?,?,?,?,?)",
            ((i, int(buyers[i]), i * 365 // ORDERS - 365, 2, b) for i, b in enumerate(blobs(ORDERS, 20, 150))),
        )
        size = 1 + rng.poisson(1.5, ORDERS)
        order = np.repeat(np.arange(ORDERS), size)
        product = skewed(rng, order.size, PRODUCTS, 0.8)
        db.executemany(
            "insert or ignore into line values(?,?,?,?)",
            ((int(o), int(p), 1, int(price[p])) for o, p in zip(order, product, strict=True)),
        )
        product = skewed(rng, REVIEWS, PRODUCTS, 0.7)
        db.executemany(
            "insert into review values(?,?,?,?,?)",
            ((i, int(product[i]), int(buyers[i]), 1 + i % 5, b) for i, b in enumerate(blobs(REVIEWS, 150, 700))),
        )
    db.execute("analyze").fetchall()
    db.close()


def mix(i: int) -> int:
    """Scatter customers over the alphabet of their addresses."""
    return i * 2654435761 % 2**32


def skewed(rng: np.random.Generator, n: int, objects: int, alpha: float) -> np.ndarray:
    """Draw ``n`` Zipf ranks and give them to objects in a fixed random order."""
    weights = np.cumsum(np.arange(1, objects + 1) ** -alpha)
    return np.random.default_rng(objects).permutation(objects)[np.searchsorted(weights, rng.random(n) * weights[-1])]


class Shop:
    """The queries; each is one method, named in the trace."""

    def __init__(self, db: apsw.Connection, rng: np.random.Generator) -> None:
        self.db, self.rng = db, rng
        self.favourites = rng.permutation(PRODUCTS)  # products by popularity; it changes from day to day
        self.orders = ORDERS
        self.day = 0

    def run(self, sql: str, *values: int | str) -> list:
        return self.db.execute(sql, values).fetchall()

    def product(self) -> int:
        # Logarithmically uniform ranks: Zipf's law with exponent 1.
        return int(self.favourites[int(PRODUCTS ** self.rng.random()) - 1])

    def customer(self) -> int:
        # Two of three visits are by the regulars, an eighth of all customers.
        if self.rng.random() < 0.66:
            return int(self.rng.integers(CUSTOMERS // 8)) * 8
        return int(self.rng.integers(CUSTOMERS))

    def view(self) -> None:
        product = self.product()
        self.run("select title, price, stock, description from product where id = ?", product)
        if self.rng.random() < 0.3:
            self.run("select stars, body from review where product = ? order by id desc limit 5", product)

    def browse(self) -> None:
        category = int(CATEGORIES ** self.rng.random()) - 1
        low = int(self.rng.integers(0, 400))
        self.run(
            "select id, title, price from product where category = ? and price >= ? order by price limit 12",
            category,
            low,
        )

    def login(self) -> None:
        self.run("select id, name, address from customer where email = ?", f"{mix(self.customer()):08x}@example.org")

    def history(self) -> None:
        self.run(
            "select o.id, o.day, o.status, l.product, l.price from orders o join line l on l.orders = o.id "
            "where o.customer = ? order by o.id desc limit 15",
            self.customer(),
        )

    def similar(self) -> None:
        self.run(
            "select b.product, count(*) from (select orders from line where product = ? limit 12) a "
            "join line b on b.orders = a.orders group by 1 order by 2 desc limit 5",
            self.product(),
        )

    def checkout(self) -> None:
        customer, lines = self.customer(), 1 + int(self.rng.poisson(1.5))
        note = self.rng.bytes(int(self.rng.integers(20, 150)))
        with self.db:
            self.run("insert into orders values(?,?,?,0,?)", self.orders, customer, self.day, note)
            for product in sorted({self.product() for _ in range(lines)}):
                self.run("insert into line select ?, id, 1, price from product where id = ?", self.orders, product)
                self.run("update product set stock = stock - 1 where id = ?", product)
        self.orders += 1

    def ship(self) -> None:
        """Orders of the last two days leave the warehouse."""
        with self.db:
            self.run("update orders set status = 1 where day = ? and status = 0 and id % 3 = 0", self.day)

    def sales(self) -> None:
        """The day's report: what was sold since last week."""
        self.run(
            "select p.category, sum(l.price) from orders o join line l on l.orders = o.id "
            "join product p on p.id = l.product where o.day = ? group by 1",
            self.day - 1,
        )

    def stocktake(self) -> None:
        """Weekly, all products in the order of the table."""
        self.run(
            "select category, sum(stock * price), max(length(description)) from product not indexed group by category"
        )

    def audit(self) -> None:
        """Monthly, all orders."""
        self.run("select status, count(*), max(length(note)) from orders not indexed group by status")

    def reindex(self) -> None:
        with self.db:
            self.run("reindex product_category")

    def change_favourites(self) -> None:
        """Overnight, some products trade places, and a few unknown ones reach the top."""
        moved = self.rng.integers(0, PRODUCTS, (PRODUCTS // 16, 2))
        risen = np.column_stack([self.rng.integers(0, 300, 24), self.rng.integers(0, PRODUCTS, 24)])
        for a, b in np.concatenate([moved, risen]):
            self.favourites[[a, b]] = self.favourites[[b, a]]


MIX = {"view": 46, "browse": 12, "login": 14, "history": 11, "similar": 5, "checkout": 8}


def record(seed: int, days: int, queries: int) -> Recorder:
    """Run the shop for ``days``, ``queries`` a day on average, and return what its database was asked for."""
    rng = np.random.default_rng(seed)
    recorder = Recorder()
    vfs = RecordingVFS(recorder)  # SQLite knows it by its name for as long as it lives
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        fill(path, rng)
        db = apsw.Connection(str(path), vfs="recording")
        db.execute(
            "pragma cache_size=8; pragma synchronous=off; pragma locking_mode=exclusive; pragma temp_store=2"
        ).fetchall()
        db.execute("pragma journal_mode=memory; pragma mmap_size=0").fetchall()
        shop = Shop(db, rng)
        recorder.on = True

        def ask(query: str) -> None:
            recorder.query = query
            getattr(shop, query)()

        names, weights = list(MIX), np.array(list(MIX.values())) / sum(MIX.values())
        hours = 1 - 0.85 * np.cos(2 * np.pi * (np.arange(24) - 4) / 24)  # quiet at four in the morning
        for day in range(days):
            shop.day = day
            for hour in range(24):
                count = rng.poisson(queries * hours[hour] / hours.sum())
                at = np.sort(rng.integers(0, 3_600_000, count)) + (day * 24 + hour) * 3_600_000
                for moment, query in zip(at.tolist(), rng.choice(names, count, p=weights).tolist(), strict=True):
                    # To the tenth of a second: finer times would only be noise that does not compress.
                    recorder.now = moment // 100 * 100
                    ask(query)
                recorder.now = (day * 24 + hour + 1) * 3_600_000
                if hour in (9, 13, 17):
                    ask("ship")
                if hour == 2:
                    ask("sales")
                    shop.change_favourites()
                if hour == 3 and day % 7 == 5:
                    ask("stocktake")
                if hour == 3 and day % 7 == 6:
                    ask("reindex")
                if hour == 3 and day == 9:
                    ask("audit")
        recorder.on = False
        db.close()
    vfs.unregister()
    return recorder


def write(recorder: Recorder, path: Path) -> None:
    """Write the trace as CSV, compressed as the suffix says; the bytes depend on the rows alone."""
    text = io.StringIO()
    text.write("time,key,size,op,query\n")
    for at, page, op, query in recorder.rows:
        text.write(f"{at / 1000:.1f},{page},{PAGE},{op},{query}\n")
    data = text.getvalue().encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, 9, mtime=0)
    elif path.suffix == ".xz":
        data = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdCompressor(level=22).compress(data)
    path.write_bytes(data)
    print(f"{path}: {len(recorder.rows)} requests, {len({r[1] for r in recorder.rows})} pages, {len(data)} bytes")
    print(f"sha256 {hashlib.sha256(data).hexdigest()}, SQLite {apsw.sqlite_lib_version()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--queries", type=int, default=2600, help="mean number of queries a day")
    given = parser.parse_args()
    write(record(given.seed, given.days, given.queries), given.path)
