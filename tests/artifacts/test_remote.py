"""Files below a URL: whole or not at all, retried, within a time limit, and errors that name no secret."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from artifacts.errors import ReadOnlyRemoteError, RemoteError, StoreError
from artifacts.remote import AT_ONCE, Remote, without_secrets
from tests.artifacts.processes import running, said
from tests.s3 import BUCKET, S3, answering, aws, free_port


def test_a_file_is_what_was_written_last_and_none_when_deleted(url: str) -> None:
    remote = Remote(url, 60)
    assert remote.read("refs/a/b") is None
    assert remote.sizes(["refs/a/b"]) == [None]
    remote.write("refs/a/b", b"one")
    remote.write("refs/a/b", b"three")
    assert (remote.read("refs/a/b"), remote.sizes(["refs/a/b"])) == (b"three", [5])
    assert Remote(url, 60).read("refs/a/b") == b"three"
    remote.delete("refs/a/b")
    remote.delete("refs/a/b")
    assert remote.read("refs/a/b") is None


def test_names_are_those_of_files_below_a_prefix_also_of_others_who_write(url: str) -> None:
    remote, other = Remote(url, 60), Remote(url, 60)
    assert remote.names("records") == []
    for name in ("records/b.json", "records/a.json", "recordsother/c"):
        other.write(name, b"x")
    assert remote.names("records") == ["records/a.json", "records/b.json"]
    other.write("records/c d.json", b"x")
    assert remote.names("records") == ["records/a.json", "records/b.json", "records/c d.json"]


def test_of_many_who_create_one_file_at_once_one_succeeds(url: str) -> None:
    remotes = [Remote(url, 60) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: remotes[number].create("leases/k/1", b"%d" % number), range(8)))
    assert made.count(True) == 1
    assert remotes[0].read("leases/k/1") == b"%d" % made.index(True)


def test_creating_again_what_one_created_succeeds_since_its_answer_may_have_been_lost(url: str) -> None:
    remote = Remote(url, 60)
    assert remote.create("x", b"mine")
    assert remote.create("x", b"mine")
    assert not remote.create("x", b"yours")


def test_large_files_go_there_and_back_several_at_once(url: str, tmp_path: Path) -> None:
    remote = Remote(url, 60)
    files = {f"objects/{n}": tmp_path / f"file{n}" for n in range(12)}
    for number, file in enumerate(files.values()):
        file.write_bytes(bytes([number]) * 300_000 * number)
    remote.upload(files)
    back = {name: tmp_path / f"back{file.name}" for name, file in files.items()}
    remote.download(back)
    assert all(back[name].read_bytes() == file.read_bytes() for name, file in files.items())
    assert remote.sizes([*files, "objects/none"]) == [300_000 * n for n in range(12)] + [None]
    with pytest.raises(FileNotFoundError):
        remote.download({"objects/none": tmp_path / "none"})
    assert remote.names("tmp") == []


def test_an_upload_that_is_killed_shows_no_half_file(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from artifacts.remote import Remote
        print("ready", flush=True)
        Remote(sys.argv[1], 60).upload({"objects/large": Path(sys.argv[2])})
    """
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(4 << 30)  # a hole: it takes seconds to copy and no room here
    share = tmp_path / "share"
    with running(code, f"file://{share}", large) as process:
        assert said(process) == "ready"
        while not list(share.glob("tmp/*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(share.glob("tmp/*")), "it was killed too late to show anything"
    assert not (share / "objects").exists()


def test_nobody_listening_is_found_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws(free_port()).items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"s3://trtforge/x cannot be used: reading y: Could not connect"):
        Remote(f"s3://{BUCKET}/x", 60).read("y")
    assert time.monotonic() - started < 15


def test_a_server_that_never_answers_is_waited_for_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in aws(silent.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        remote = Remote(f"s3://{BUCKET}/x", 1.5)
        started = time.monotonic()
        with pytest.raises(RemoteError, match=r"no answer within 1\.5 s") as caught:
            remote.read("y")
        assert time.monotonic() - started < 10
        assert "store.remote_limit_s" in caught.value.next_step


def test_all_who_wait_for_a_server_that_never_answers_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in aws(silent.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        remote = Remote(f"s3://{BUCKET}/x", 1.0)
        with ThreadPoolExecutor(6) as pool:
            ended = [pool.submit(remote.read, "y").exception(30) for _ in range(1)]
            ended += [future.exception(30) for future in [pool.submit(remote.read, "y") for _ in range(6)]]
    assert {type(error) for error in ended} == {RemoteError}


def test_small_files_do_not_wait_behind_large_ones(tmp_path: Path) -> None:
    sending, sent = threading.Event(), threading.Event()

    class Slow(LocalFileSystem):  # type: ignore[misc]
        """A file system over a slow line: nothing is there before the test says so."""

        protocol = "slow"

        def put_file(self, *arguments: object, **options: object) -> None:
            sending.set()
            assert sent.wait(30)
            super().put_file(*arguments, **options)

    fsspec.register_implementation("slow", Slow, clobber=True)
    remote = Remote(f"slow://{tmp_path}/shared", 20)
    (tmp_path / "plan").write_bytes(b"large")
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(remote.upload, {f"objects/{n}": tmp_path / "plan" for n in range(3 * AT_ONCE)})
        assert sending.wait(10)
        remote.write("leases/k/1", b"alive")  # else whoever waits takes the sender for dead
        assert remote.create("leases/j/1", b"mine")
        assert not upload.done()
        sent.set()
        upload.result(30)
    assert remote.read("objects/0") == b"large"


def test_a_bucket_that_does_not_exist_cannot_be_used(s3: S3, tmp_path: Path) -> None:
    remote = Remote("s3://nobody-made-this/x", 20)
    (tmp_path / "file").touch()
    writing = [
        lambda: remote.write("a", b""),
        lambda: remote.create("a", b""),
        lambda: remote.upload({"a": tmp_path / "file"}),
    ]
    for write in writing:
        with pytest.raises(RemoteError, match=r"bucket does not exist"):
            write()


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "shared/objects").mkdir(parents=True)
    (tmp_path / "shared/objects/ab").touch()  # a file where a directory belongs
    remote = Remote(f"file://{tmp_path}/shared", 20)
    for write in (remote.write, remote.create):
        with pytest.raises(RemoteError, match="cannot be used"):
            write("objects/ab/cd", b"x")
    assert list((tmp_path / "shared/tmp").iterdir()) == []


def test_a_host_in_the_url_is_the_one_that_is_asked() -> None:
    with pytest.raises(RemoteError, match=r"ftp://127\.0\.0\.1.*Connection refused"):
        Remote(f"ftp://127.0.0.1:{free_port()}/x", 20).read("y")


def test_a_server_that_is_busy_for_a_moment_is_asked_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url
    Remote(url, 60).write("x", b"there")
    with answering(503, b"<Error><Code>SlowDown</Code></Error>", times=2, then=s3) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert Remote(url, 60).read("x") == b"there"


def test_credentials_that_may_not_write_are_told_apart(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(403, b"<Error><Code>AccessDenied</Code></Error>", then=s3) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(ReadOnlyRemoteError):
            Remote(s3.url, 60).write("x", b"y")


def test_an_error_tells_no_secret_even_if_the_server_does(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "you are AKIANOTTOBETOLD with secret/not+to+be+told"
    with answering(400, f"<Error><Code>Odd</Code><Message>{told}</Message></Error>".encode(), then=s3) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(RemoteError) as caught:
            Remote(s3.url, 60).read("x")
    assert "you are *** with ***" in caught.value.what


def test_secrets_of_the_environment_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=x;AccountKey=abcdef")
    monkeypatch.setenv("MY_TOKEN", "tok")  # too short to be one, and part of many a word
    assert without_secrets("no AccountName=x;AccountKey=abcdef token") == "no *** token"


@pytest.mark.parametrize(
    ("url", "said_what"),
    [
        ("s4://bucket", "fsspec knows no s4://"),
        ("s3://AKIA:hidden@bucket/x", "the URL holds credentials"),
        ("https://host/x?sig=hidden", "the URL holds credentials"),
        ("abfs://container/x?access_token=hidden", "the URL holds credentials"),
        ("s3://[hidden", "no URL"),
        ("s3://", "names no place"),  # `s3://$BUCKET`: it was taken for a directory called `s3:`
        ("s3:///prefix", "names no place"),
        ("memory://", "names no place"),
        ("file:///", "names no place"),
    ],
)
def test_a_url_that_can_be_no_remote_is_refused_and_not_repeated(url: str, said_what: str) -> None:
    with pytest.raises(StoreError, match=said_what) as caught:
        Remote(url, 60)
    assert "hidden" not in caught.value.what + caught.value.next_step


def test_a_directory_that_cannot_be_written_is_read_only(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    share = tmp_path / "share"
    share.mkdir()
    (share / "x").write_bytes(b"y")
    share.chmod(0o555)
    assert Remote(str(share), 60).read("x") == b"y"
    with pytest.raises(ReadOnlyRemoteError):
        Remote(str(share), 60).write("z", b"y")
