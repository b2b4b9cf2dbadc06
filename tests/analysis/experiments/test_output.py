import os

import pytest

from analysis.experiments import output
from analysis.experiments.output import delete_leftovers, replacing, write


def test_text_and_bytes_into_folders_that_are_made(tmp_path):
    write(tmp_path / "a" / "b.md", "‖W − X‖\n")
    assert (tmp_path / "a" / "b.md").read_text(encoding="utf-8") == "‖W − X‖\n"
    write(tmp_path / "a" / "b.md", b"\x00\x01")
    assert (tmp_path / "a" / "b.md").read_bytes() == b"\x00\x01"


def test_what_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write(path, b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"half of the new")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_living_processes_and_of_recent_strangers_stay(tmp_path):
    with replacing(tmp_path / "ours") as file:
        delete_leftovers(tmp_path)
        assert os.path.exists(file.name)
    stranger = tmp_path / ".record.json.elsewhere.1.tmp"
    stranger.write_bytes(b"")
    delete_leftovers(tmp_path)
    assert stranger.exists()
    os.utime(stranger, (0, 0))
    delete_leftovers(tmp_path)
    assert not stranger.exists()


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    output.write(path, b"old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(output.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        output.write(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"old"
