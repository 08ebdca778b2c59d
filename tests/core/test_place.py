"""A file that is written beside its place goes through a link, and replaces nothing but a file."""

import os
from pathlib import Path

import pytest

from kvpredict.core.place import file_place
from kvpredict.pipelines.files import write_text


def test_a_link_leads_to_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "file"
    link.symlink_to(target)
    assert file_place(link) == target.resolve()  # also where there is no such file yet
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    write_text(link, "newer")
    assert (link.is_symlink(), target.read_text()) == (True, "newer")


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for place in (pipe, tmp_path / "link", tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            file_place(place)
        with pytest.raises(OSError, match="no regular file"):
            write_text(place, "text")
    assert pipe.is_fifo()
