"""A course site: lessons rendered from text files, cached with what they are made of, warm after a restart.

    python examples/course_site.py [--folder site] [--port 8001]

    curl localhost:8001/algebra/1
    curl -X POST localhost:8001/algebra/publish        # its lessons were edited

What the cache does here: pages are weighed by their length; each carries its course as a tag, so that publishing a
course takes out its pages and no others; a page is rendered once however many students open it at the start of the
hour; the lesson that follows is rendered before the student turns the page, as long as that pays; and the process
leaves a snapshot behind, so that the next one starts warm.
"""

import argparse
import html
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from kvpredict.cache import Cache, Expiry, Loaded, Prefetcher, SnapshotError, load_snapshot, save_snapshot, stable_hash

COURSES = {"algebra": 12, "biology": 20, "chemistry": 15}


def make_site(folder: Path) -> FastAPI:
    """Return the service over the text files in ``folder``, which is made and filled where it is not there."""
    for course, lessons in COURSES.items():
        (folder / course).mkdir(parents=True, exist_ok=True)
        for number in range(1, lessons + 1):
            path = folder / course / f"{number}.txt"
            if not path.exists():
                path.write_text(f"Lesson {number} of {course}\n\n" + "A paragraph of the lesson.\n\n" * 40)

    rendered = [0]

    def render(key: tuple[str, int]) -> Loaded:
        course, number = key
        try:
            text = (folder / course / f"{number}.txt").read_text()
        except FileNotFoundError:
            raise LookupError(f"{course} has no lesson {number}") from None
        rendered[0] += 1
        time.sleep(0.01)  # as long as a real template takes
        title, *paragraphs = [html.escape(part) for part in text.split("\n\n") if part.strip()]
        page = f"<h1>{title}</h1>" + "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
        return Loaded(page, tags=(course,))

    pages: Cache[tuple[str, int], str] = Cache(
        200_000,
        "s3fifo",
        weigher=len,
        loader=render,
        expiry=Expiry(idle=3600),
        key_hash=stable_hash,  # so that a snapshot's memory of past requests holds in the next process
    )
    reader = Prefetcher(pages, render, support=2)
    snapshot = folder / "pages.snapshot"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if snapshot.exists():
            try:
                print("restored", load_snapshot(pages, snapshot).entries, "pages", flush=True)
            except SnapshotError as error:
                logging.warning("starting cold: %s", error)
        yield
        save_snapshot(pages, snapshot)

    site = FastAPI(title="Courses", lifespan=lifespan)

    @site.get("/stats")
    def stats() -> dict[str, object]:
        return {**pages.stats()._asdict(), "marks": None, "rendered": rendered[0], "prefetch": reader.stats()._asdict()}

    @site.get("/{course}/{number}", response_class=HTMLResponse)
    def page(course: str, number: int, student: str = "anonymous") -> str:
        try:
            return reader.get_or_load((course, number), session=student)
        except LookupError as error:
            raise HTTPException(404, str(error)) from None

    @site.post("/{course}/publish")
    def publish(course: str) -> dict[str, int]:
        return {"pages taken out": pages.invalidate_tags(course)}

    return site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("site"))
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    uvicorn.run(make_site(options.folder), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
