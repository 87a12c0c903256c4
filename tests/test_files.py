"""Atomic writes: a reader sees the old content or the new one, a failed or killed writer leaves no target; digests."""

import os
import signal
import subprocess
import sys

import pytest

from layerswap import files
from layerswap.errors import UserError

WRITER = """
import itertools, sys
from layerswap.files import atomic_file, atomic_folder
for i in itertools.count():
    with atomic_file(f"{sys.argv[1]}/file") as file:
        for _ in range(20):
            file.write(f"{i}\\n")
    with atomic_folder(f"{sys.argv[1]}/folder-{i}") as folder:
        for name in "abc":
            (folder / name).write_text(str(i))
    print(i, flush=True)
"""


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "deep" / "file"
    with files.atomic_file(target) as file:
        file.write("old\n")
    with pytest.raises(RuntimeError), files.atomic_file(target) as file:
        file.write("new\n")
        raise RuntimeError
    assert target.read_bytes() == b"old\n" and os.listdir(target.parent) == ["file"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_folder_is_never_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    with files.atomic_folder(tmp_path / "folder") as folder:  # an empty one may be there
        (folder / "a").write_text("a")
    for taken in ("folder", "folder/a"):
        with pytest.raises(UserError, match="exists already"), files.atomic_folder(tmp_path / taken):
            pass
    assert (tmp_path / "folder" / "a").read_text() == "a"


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    others = [".folder.notes.tmp", ".folder2.0a1b2c3d.tmp", ".folder.v2.0a1b2c3d.tmp"]
    for name in (".folder.0a1b2c3d.tmp", ".folder.1a1b2c3d.tmp", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    with files.locked(tmp_path / ".folder.1a1b2c3d.tmp"), files.atomic_folder(tmp_path / "folder"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"folder", ".folder.1a1b2c3d.tmp", *others}


def test_a_link_or_a_folder_written_meanwhile_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link: is a link"), files.atomic_folder(tmp_path / "link"):
        pass
    with (  # two writers of one target: the second to end loses
        pytest.raises(UserError, match="folder: exists already, written meanwhile"),
        files.atomic_folder(tmp_path / "folder") as slow,
    ):
        (slow / "a").write_text("slow")
        with files.atomic_folder(tmp_path / "folder") as quick:
            (quick / "a").write_text("quick")
    assert (tmp_path / "folder" / "a").read_text() == "quick" and len(list(tmp_path.iterdir())) == 2


def test_the_current_folder_is_no_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", ""):
        with pytest.raises(UserError, match="is the current folder"), files.atomic_folder(name):
            pass


def test_space_is_checked_where_the_target_will_be(tmp_path):
    files.check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match="there: needs .* MB, .* MB free"):
        files.check_space(tmp_path / "not" / "there", 1 << 60)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
def test_a_killed_writer_leaves_whole_targets(tmp_path, after):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(after):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    lines = (tmp_path / "file").read_text().splitlines()
    assert len(lines) == 20 and len(set(lines)) == 1
    folders = sorted(tmp_path.glob("folder-*"))
    assert len(folders) >= after
    for folder in folders:
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys("abc", folder.name[7:])


def test_digest_is_of_content_not_order():
    digest = files.json_digest({"a": 1, "b": "ä"})
    assert digest == files.json_digest({"b": "ä", "a": 1}) != files.json_digest({"a": 1, "b": "a"})


@pytest.mark.parametrize(("name", "message"), [("", "is not set"), ("nowhere", "nowhere: no such folder")])
def test_data_folder_must_exist(monkeypatch, name, message):
    monkeypatch.setenv("LAYERSWAP_DATA", name)
    with pytest.raises(UserError, match=message):
        files.data_folder()


def test_digests_are_those_that_name_stored_content(tmp_path):
    assert files.json_digest({"b": ["ä", 1.5, None], "a": True}) == (
        "9f41b41db5eea148dc551bd415f562298d07ad0c893ca98f7beb497411a30865"
    )
    (tmp_path / "file").write_bytes(b"abc")
    assert files.file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n\n{"a": "\u2028"}\n', encoding="utf-8-sig")
    assert files.read_rows(path, lines=True) == files.read_rows(path.rename(tmp_path / "rows.jsonl"))
    assert files.read_rows(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": "\u2028"}]
    path.write_text('[{"a": 1}]')
    assert files.read_rows(path) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}')
    with pytest.raises(UserError, match="rows.json: Extra data"):
        files.read_rows(path)
    with pytest.raises(UserError, match="none.json: .*No such file"):
        files.read_rows(tmp_path / "none.json")
