"""A remote: files below any fsspec URL (`s3://`, `gs://`, `file://`, …), shared by many machines.

```
<url>/objects/ab/cdef…            as in a store
<url>/records/<key>.json
<url>/refs/…
<url>/timing/…                    as in a store
<url>/leases/<key>/<token>        who is building what; see `artifacts.lease`
<url>/tmp/                        files that are being written, where a put is not all or nothing
```

Here is only what every file needs: whole or not at all, retried, within a time limit, with errors that name no secret.
`artifacts.exchange` knows what the files mean.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from artifacts.errors import ReadOnlyRemoteError, RemoteError, StoreError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

AT_ONCE = 8
"""Transfers at a time; one stream of an object store carries 50 to 100 MB/s, a machine's network ten times that."""

TRIES = 3
BACKOFF_SECONDS = 0.2
"""Before the second try; doubled before each further one."""

WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"})
"""Protocols whose put shows the whole file or none of it; elsewhere a file is written aside and renamed."""

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|CONNECTION_STRING|SAS", re.IGNORECASE)
_SHORTEST_SECRET = 6
_ADVICE = "check its URL, its credentials and the network"
T = TypeVar("T")
Kind = Literal["call", "transfer"]


class Remote:
    """The files below `url`. Nothing is imported or connected before the first of them is asked for.

    Args:
        url: Any fsspec URL, or a directory.
        limit_s: No call takes longer, in seconds.

    Raises:
        StoreError: The URL cannot be a remote: unknown protocol, package not installed, no place in it, or credentials.
    """

    def __init__(self, url: str, limit_s: float) -> None:
        _require_no_credentials(url)
        _require_protocol(url)
        _require_place(url)
        self.url = url.rstrip("/")
        self._limit_s = limit_s
        self._pools: dict[Kind, ThreadPoolExecutor] = {}
        self._pooling = threading.Lock()

    # Small files

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, None if there is none.

        Raises:
            RemoteError: The remote cannot be used.
        """
        return self.read_all([name])[0]

    def write(self, name: str, content: bytes) -> None:
        """Makes `content` the content of the file `name`.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self.write_all({name: content})

    def create(self, name: str, content: bytes) -> bool:
        """Makes the file `name` unless there is one; of several who try at once, one succeeds.

        That is so where the remote can do it: S3 and Google Cloud Storage by a condition of the request, file systems
        by a hard link. Elsewhere it is looked for first, and two may succeed at the same moment.

        Raises:
            RemoteError: The remote cannot be used.
        """
        try:
            with self._there():
                self._call(f"creating {name}", lambda: self._create(self._path(name), content))
        except FileExistsError:
            return self.read(name) == content  # a try whose answer was lost made it
        return True

    def delete(self, name: str) -> None:
        """Deletes the file `name`, if there is one.

        Raises:
            RemoteError: The remote cannot be used.
        """
        with suppress(FileNotFoundError):
            self._call(f"deleting {name}", lambda: self._files.rm_file(self._path(name)))

    def names(self, prefix: str) -> list[str]:
        """The names of the files below `prefix`, sorted.

        Raises:
            RemoteError: The remote cannot be used.
        """
        base = self._path("")
        return [path[len(base) :] for path in self._call(f"listing {prefix}", lambda: self._find(self._path(prefix)))]

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of several small files at once, None for each that is not there.

        Raises:
            RemoteError: The remote cannot be used.
        """

        def read(path: str) -> bytes | None:
            try:
                return bytes(self._files.cat_file(path))
            except FileNotFoundError:
                return None

        return self._all("call", [(f"reading {name}", partial(read, self._path(name))) for name in names])

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Makes several small files at once hold what is given, by name.

        Raises:
            RemoteError: The remote cannot be used.
        """

        def put(content: bytes, path: str) -> None:
            self._files.pipe_file(path, content)

        with self._there():
            self._all(
                "call",
                [
                    (f"writing {name}", partial(self._place, name, partial(put, text)))
                    for name, text in contents.items()
                ],
            )

    # Large files, several at once

    def upload(self, files: Mapping[str, Path]) -> None:
        """Sends the files, by name.

        Raises:
            RemoteError: The remote cannot be used.
        """
        with self._there():
            self._all(
                "transfer",
                (
                    (f"sending {name}", partial(self._place, name, partial(self._files.put_file, str(file))))
                    for name, file in files.items()
                ),
            )

    def download(self, files: Mapping[str, Path]) -> None:
        """Fetches the files, by name; what they hold is for the caller to check.

        Raises:
            FileNotFoundError: There is no such file.
            RemoteError: The remote cannot be used.
        """
        self._all(
            "transfer",
            (
                (f"fetching {name}", partial(self._files.get_file, self._path(name), str(file)))
                for name, file in files.items()
            ),
        )

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """The sizes of the files, in bytes; None for each that is not there.

        Raises:
            RemoteError: The remote cannot be used.
        """

        def size(path: str) -> int | None:
            try:
                return int(self._info(path)["size"])
            except FileNotFoundError:
                return None

        return self._all("call", ((f"looking for {name}", partial(size, self._path(name))) for name in names))

    # How

    @cached_property
    def _files(self) -> AbstractFileSystem:
        import fsspec

        protocol = _protocol(self.url)
        try:  # some have the host in the URL, and all their own errors
            options = _options(protocol) | fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(self.url)
            files = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
        except Exception as error:
            raise self._error(str(error) or type(error).__name__) from None
        if hasattr(files, "retries"):  # of s3fs and gcsfs, 5 and 6: here are the tries that count
            files.retries = 1
        return files

    @cached_property
    def _root(self) -> str:
        return str(self._files._strip_protocol(self.url)).rstrip("/")

    @property
    def _is_directory(self) -> bool:
        return _protocol(self.url) in ("file", "local")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _find(self, path: str) -> list[str]:
        self._files.invalidate_cache()  # others write too
        try:
            return sorted(self._files.find(path))
        except FileNotFoundError:
            return []

    def _info(self, path: str) -> Mapping[str, Any]:
        self._files.invalidate_cache()
        found: Mapping[str, Any] = self._files.info(path)
        return found

    def _place(self, name: str, put: Callable[[str], object]) -> None:
        path = self._path(name)
        if _protocol(self.url) in WHOLE_PUTS:
            put(path)
            return
        aside = self._aside(put)
        try:
            self._make(path.rpartition("/")[0])
            if self._is_directory:
                Path(aside).replace(path)
            else:
                self._files.mv(aside, path)
        except BaseException:
            self._clear(aside)
            raise

    def _aside(self, put: Callable[[str], object]) -> str:
        aside = self._path(f"tmp/{secrets.token_hex(8)}")
        self._make(self._path("tmp"))
        try:
            put(aside)
        except BaseException:
            self._clear(aside)
            raise
        return aside

    def _make(self, directory: str) -> None:
        try:
            self._files.makedirs(directory, exist_ok=True)
        except FileExistsError as error:  # there is a file, which is not what `create` means by it
            raise NotADirectoryError(str(error)) from error

    def _clear(self, aside: str) -> None:
        with suppress(Exception):  # what went wrong first is what counts
            self._files.rm_file(aside)

    def _create(self, path: str, content: bytes) -> None:
        if not self._is_directory:
            if _protocol(self.url) not in WHOLE_PUTS:
                self._make(path.rpartition("/")[0])
            self._files.pipe_file(path, content, mode="create")
            return
        aside = Path(self._aside(lambda aside: self._files.pipe_file(aside, content)))
        try:
            self._make(path.rpartition("/")[0])
            Path(path).hardlink_to(aside)
        finally:
            aside.unlink(missing_ok=True)

    def _call(self, what: str, action: Callable[[], T]) -> T:
        return self._all("call", [(what, action)])[0]

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Around what writes: what is not found then is no file of the remote, but the place for it."""
        try:
            yield
        except FileNotFoundError as error:  # S3 says so of a bucket that does not exist
            raise self._error(str(error)) from None

    def _all(self, kind: Kind, actions: Iterable[tuple[str, Callable[[], T]]]) -> list[T]:
        """Does all actions, some at a time, and returns their results in order.

        Calls do not queue behind transfers: a holder of a lease must be heard of while it sends.
        """
        todo, deadline = list(actions), time.monotonic() + self._limit_s
        with self._pooling:
            pool = self._pools.setdefault(kind, ThreadPoolExecutor(AT_ONCE, f"remote-{kind}"))
            futures = [pool.submit(self._tried, what, action, deadline) for what, action in todo]
        late = wait(futures, self._limit_s).not_done
        for future in late:
            future.cancel()
        if late:
            self._abandon(kind, pool)  # its threads hang: others take over
            raise self._error(f"no answer within {self._limit_s:g} s", "allow it more: store.remote_limit_s=SECONDS")
        return [future.result() for future in futures]

    def _abandon(self, kind: Kind, pool: ThreadPoolExecutor) -> None:
        with self._pooling:
            if self._pools.get(kind) is pool:  # of several that were late, the first
                del self._pools[kind]
                pool.shutdown(wait=False)

    def _tried(self, what: str, action: Callable[[], T], deadline: float) -> T:
        for left in reversed(range(TRIES)):
            try:
                return action()
            except (FileNotFoundError, FileExistsError, RemoteError):
                raise
            except PermissionError as error:
                raise self._error(
                    f"{what}: {error}", "check what its credentials may do", ReadOnlyRemoteError
                ) from None
            except Exception as error:  # every file system of fsspec has errors of its own
                pause = BACKOFF_SECONDS * 2 ** (TRIES - 1 - left)
                if not left or time.monotonic() + pause > deadline:
                    raise self._error(f"{what}: {error or type(error).__name__}") from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _error(self, what: str, next_step: str = _ADVICE, kind: type[RemoteError] = RemoteError) -> RemoteError:
        return kind(f"the remote {self.url} cannot be used: {without_secrets(' '.join(what.split()))}", next_step)


def without_secrets(text: str) -> str:
    """`text` with `***` for every credential that the environment or fsspec's configuration holds."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets() -> Iterator[str]:
    from fsspec.config import conf  # type: ignore[import-untyped]

    for name, value in [*os.environ.items(), *_leaves(conf)]:
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            yield value


def _leaves(tree: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}_{key}")
        else:
            yield f"{name}_{key}", str(value)


def _protocol(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "file"


def _options(protocol: str) -> dict[str, Any]:
    from fsspec.config import conf

    if protocol in ("s3", "s3a"):
        own = {
            # botocore's own 5 tries, within s3fs's own 5, took 10 s to find that nobody listens.
            "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}},
            # Parts of 50 MiB of one file: of 10 at once, 4 files of 150 MB took 1.2 GB of memory.
            "max_concurrency": 1,
        }
        return {name: value for name, value in own.items() if name not in conf.get(protocol, {})}
    return {"auto_mkdir": True} if protocol in ("file", "local") else {}


def _require_no_credentials(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StoreError(f"store.remote is no URL: {error}", "such as s3://bucket/prefix") from None
    if parts.password is not None or _SECRET.search(parts.query) or "sig=" in parts.query:
        raise StoreError(
            f"store.remote={parts.scheme}://…: the URL holds credentials, which would be kept in records",
            "give them by the environment (AWS_ACCESS_KEY_ID, …) or in fsspec's configuration",
        )


def _require_place(url: str) -> None:
    # With a variable that is not set, `s3://$BUCKET` would be a directory named `s3:` and `s3://$BUCKET/x` a bucket
    # without a name.
    protocol, place = _protocol(url), url.partition("://")[2] if "://" in url else url
    if not place.strip("/") or (place.startswith("/") and protocol in WHOLE_PUTS - {"memory"}):
        raise StoreError(f"store.remote={url}: it names no place", "such as s3://bucket/prefix or file:///directory")


def _require_protocol(url: str) -> None:
    from importlib.util import find_spec

    from fsspec.registry import known_implementations  # type: ignore[import-untyped]
    from fsspec.registry import registry as registered

    protocol = _protocol(url)
    known = known_implementations.get(protocol)
    if known is None and protocol not in registered:
        raise StoreError(f"store.remote={url}: fsspec knows no {protocol}://", "such as s3://bucket/prefix")
    package = known["class"].partition(".")[0] if known else "fsspec"
    if find_spec(package) is None:
        extra = "pip install 'trtforge[s3]'" if protocol in ("s3", "s3a") else f"pip install {package}"
        raise StoreError(f"store.remote={url}: {package} is not installed", extra)
