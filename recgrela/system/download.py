"""Downloads of files over HTTP, which resume where they stopped and appear when they are complete.

The bytes are collected in ``.NAME.part`` beside the file. ``.NAME.part.json`` records the URL and the
server's validator of the content (ETag or Last-Modified), which a later request sends as If-Range: a server
with another content answers with all of it instead of the rest.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from recgrela.system.errors import DiskFull, RunError
from recgrela.system.files import atomic_write_text, flush_file
from recgrela.system.memory import in_gb
from recgrela.system.text import one_line

TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 18
_ATTEMPTS = 3  # that bring no new byte
_PAUSE = 1.0  # seconds after the first of them
_FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, "int | None"], None]  # bytes so far, and of the whole file if known


class _Lost(Exception):
    """A connection ended before the content did; another one may get the rest."""


@dataclass(frozen=True)
class Checksum:
    """The hash that a file must have: name of the algorithm in hashlib, and the hexadecimal digest."""

    algorithm: str
    digest: str

    def of(self, path: Path) -> str:
        """The digest of a file by the same algorithm."""
        return file_digest(path, self.algorithm)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        found = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def download(
    url: str,
    path: Path,
    checksum: Checksum | None = None,
    progress: Progress = lambda done, size: None,
    timeout: float = TIMEOUT,
) -> None:
    """Download a file.

    What an earlier call left is not requested again. A connection that is lost is made again, as long as each
    one brings bytes.

    Args:
        url: address, http or https.
        path: the file to write, in a folder that exists; a file of this name is replaced.
        checksum: what the content must have; None: its size alone is compared, with the size that the server
            tells.
        progress: called with the bytes so far and the size, None if unknown.
        timeout: seconds that a connection may take to be made or to bring bytes.

    Raises:
        DiskFull: the disk is too small; the bytes so far are kept.
        RunError: the server cannot be reached, refuses, or sends a content with another checksum, which is
            removed; or another process downloads the same file.
    """
    part = path.with_name(f".{path.name}.part")
    with _only_one(part) as file:
        failures = 0
        while failures < _ATTEMPTS:
            before = _size(file)
            try:
                _receive(url, file, part, progress, timeout)
                break
            except _Lost as error:
                failures = failures + 1 if _size(file) <= before else 0
                reason = one_line(error)
                time.sleep(_PAUSE * failures)
        else:
            raise RunError(
                f"{url}: the connection was lost after {_size(file):,} bytes ({reason}); the same "
                "command resumes"
            )
        if checksum is not None and (found := checksum.of(part)) != checksum.digest:
            part.unlink()
            _record(part).unlink(missing_ok=True)
            raise RunError(
                f"{url}: damaged, or changed by its publisher: its {checksum.algorithm} is {found}, not "
                f"{checksum.digest}; the download was removed"
            )
        os.fsync(file.fileno())
        os.replace(part, path)
        _record(part).unlink(missing_ok=True)
        flush_file(path.parent)


@contextmanager
def _only_one(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, open for reading and appending, and locked."""
    try:
        with part.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{part}: another process is writing this download") from None
            # Another process may have finished and renamed the file between opening and locking it.
            if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
                raise RunError(f"{part}: another process has just finished this download")
            yield file
    except OSError as error:
        if error.errno in _FULL:
            kept = f"{part.stat().st_size:,} bytes are kept in {part}"
            raise DiskFull(
                f"no space left on the disk; {kept}; free some and give the same command"
            ) from None
        raise RunError(f"cannot write {part}: {error.strerror or error}") from error


def _receive(url: str, file: BinaryIO, part: Path, progress: Progress, timeout: float) -> None:
    """Append what is missing. Raises _Lost if the connection ends early."""
    answer = _request(url, _size(file), _read_record(part, url), timeout)
    with answer.response as response:
        if answer.start == 0:
            file.truncate(0)
            _record(part).unlink(missing_ok=True)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):  # a weak one does not identify bytes
            atomic_write_text(_record(part), json.dumps({"url": url, "validator": validator}))
        done, size = answer.start, answer.size
        free = shutil.disk_usage(part.parent).free
        if size is not None and size - done > free:
            raise DiskFull(
                f"{part.parent}: {in_gb(free)} are free, and {in_gb(size - done)} are needed for {url}"
            )
        progress(done, size)
        while True:
            try:
                block = response.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Lost(error) from error
            if not block:
                break
            file.write(block)
            done += len(block)
            progress(done, size)
        file.flush()
    if size is not None and done != size:
        raise _Lost(f"{done:,} of {size:,} bytes came")


class _Answer(NamedTuple):
    """A response whose content begins at byte `start` of a file of `size` bytes, None if unknown."""

    response: Any
    start: int
    size: int | None


def _request(url: str, start: int, validator: str | None, timeout: float) -> _Answer:
    """Ask for a file from byte `start`, which needs the validator of the bytes before."""
    headers = {"User-Agent": "recgrela", "Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    else:
        start = 0
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the rest is empty, or the file has become shorter
            return _request(url, 0, None, timeout)
        if error.code >= 500 or error.code == 429:
            raise _Lost(f"HTTP status {error.code} {error.reason}") from None
        raise RunError(f"{url}: the server refuses it: HTTP status {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from None
    if url.startswith("https:") and not response.geturl().startswith("https:"):
        response.close()
        raise RunError(f"{url}: the server redirects to {response.geturl()}, which is not encrypted")
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return _Answer(response, 0, int(length) if length and length.isdecimal() else None)
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start:
        response.close()
        return _request(url, 0, None, timeout)
    return _Answer(response, start, int(found[3]))


def _unreachable(url: str, reason: object) -> Exception:
    """The error if there is no connection; a timeout or a reset may be over at the next attempt."""
    host = urllib.request.Request(url).host
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RunError(
            f"{host}: its certificate is not valid ({reason.verify_message}); fetch {url} by other means"
        )
    if isinstance(reason, TimeoutError | ConnectionResetError | http.client.HTTPException):
        return _Lost(reason)
    said = getattr(reason, "strerror", None) or one_line(reason)
    return RunError(
        f"cannot reach {host} ({said}); check the network and the variables http_proxy and https_proxy, or "
        f"fetch {url} by other means"
    )


def _record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_record(part: Path, url: str) -> str | None:
    """The validator of the bytes in the unfinished file; None if it is unknown or of another URL."""
    try:
        record = json.loads(_record(part).read_bytes())
        return str(record["validator"]) if record["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size
