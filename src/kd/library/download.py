"""One file over HTTP: bounded, resumed where it stopped, tried again, and verified before it has its name.

No token is read or sent. Proxies come from the environment, and so do certificates.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
from tqdm import tqdm

from kd.errors import UserError
from kd.store import file_hash, write_text

ATTEMPTS = 5  # in a row that bring nothing
UNREACHED = 2  # of them, where not even a connection can be made
BACK_OFF = 0.5  # seconds before the second attempt, twice as many before each further one
LONGEST_PAUSE = 30.0
SPARE_BYTES = 64 << 20  # that stay free on the disk
CHUNK = 1 << 16  # bytes that a killed process may lose
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class RefusedError(Exception):
    """A source that cannot give the file; another one may."""


class NotThereError(RefusedError):
    """The server answers, and has no such file."""


class ChangedError(RefusedError):
    """Another content than at the first download."""


class UnreachableError(RefusedError):
    """There is no way to the server."""


class TransientError(Exception):
    """What may go better at the next attempt, not sooner than after ``pause`` seconds."""

    def __init__(self, reason: str, pause: float = 0.0, reached: bool = True) -> None:
        super().__init__(reason)
        self.pause, self.reached = pause, reached


@dataclass(frozen=True)
class Received:
    url: str
    bytes: int
    sha256: str
    commit: str | None = None  # of the hub's repository


def new_client() -> httpx2.Client:
    """Raises UserError for a proxy or a certificate file in the environment that cannot be used."""
    named = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), None)
    try:
        trusted = ssl.create_default_context(cafile=named) if named else True
        return httpx2.Client(
            follow_redirects=True, max_redirects=5, timeout=httpx2.Timeout(30.0, connect=10.0), verify=trusted,
            headers={"User-Agent": "kd", "Accept-Encoding": "identity"},
        )  # fmt: skip
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"The certificates {named} cannot be read ({error}): see {', '.join(CERTIFICATES)}.") from error
    except (ValueError, ImportError) as error:
        raise UserError(f"A proxy named in the environment (HTTPS_PROXY ...) cannot be used: {error}") from error


def download(client: httpx2.Client, url: str, path: Path, sha256: str | None, most: int) -> Received:
    """The file at ``url`` as ``path``, whole and right, or an error. ``most``: bytes it may have.

    What an earlier process left of it (``path.part``) is gone on with, if the server still has the same.
    Raises RefusedError; UserError for what is wrong on this machine.
    """
    done = stored(path)
    if path.is_file() and done.get("url") == url and file_hash(path) == done["sha256"] == (sha256 or done["sha256"]):
        return Received(url, path.stat().st_size, done["sha256"], done.get("commit"))
    part = path.with_name(f"{path.name}.part")
    for _ in range(2):
        resumed = part.is_file()
        received_all(client, url, part, most)
        noted, found = stored(part), file_hash(part)
        wanted = {one for one in (sha256, noted.get("promised")) if one}
        if wanted <= {found}:
            break
        drop(part)
        if not resumed:  # else the two parts may not have been of one file
            raise RefusedError(
                f"{url} has the sha256 {found}, expected is {' and '.join(sorted(wanted))}: it was thrown away"
            )
    else:
        raise RefusedError(f"{url} does not have the expected sha256 {' and '.join(sorted(wanted))}")
    part.replace(path)
    note(path, {"url": url, "sha256": found, "commit": noted.get("commit")})
    state_of(part).unlink(missing_ok=True)
    return Received(url, path.stat().st_size, found, noted.get("commit"))


def received_all(client: httpx2.Client, url: str, part: Path, most: int) -> None:
    """Asks until everything is there; an attempt that brought something is no failed one."""
    failures = 0
    while True:
        before = size_of(part)
        try:
            return receive(client, url, part, most)
        except TransientError as error:
            failures = 1 if size_of(part) > before else failures + 1
            if failures >= (ATTEMPTS if error.reached else UNREACHED):
                kind = RefusedError if error.reached else UnreachableError
                raise kind(f"{url}: {error}" + (f" ({failures} times in a row)" if failures > 1 else "")) from error
            wait = max(error.pause, BACK_OFF * 2 ** (failures - 1) * random.uniform(0.75, 1.25))
            time.sleep(min(wait, LONGEST_PAUSE))


def receive(client: httpx2.Client, url: str, part: Path, most: int) -> None:
    """One attempt. Raises TransientError with what arrived kept, for the next one to go on from."""
    noted = stored(part)
    same = noted.get("url") == url and bool(noted.get("validator"))
    start = size_of(part) if same else 0
    headers = {"Range": f"bytes={start}-", "If-Range": noted["validator"]} if start else {}
    try:
        with client.stream("GET", url, headers=headers) as response:
            check_answer(response, url, part, start)
            if response.status_code == 200:
                start = 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None else None
            check_size(url, part, start, total, most)
            if not start:  # before the note, so that a part of one file is never noted as another's
                drop(part)
            note(part, {"url": url, "validator": validator(response), "promised": promised(response),
                        "commit": response.headers.get("X-Repo-Commit") or commit(response)})  # fmt: skip
            write(response, part, start, total, most)
    except httpx2.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UnreachableError(
                f"{url}: its certificate is not trusted here; name your network's CA file in SSL_CERT_FILE"
            ) from error
        raise TransientError(f"no connection ({error})", reached=False) from error
    except httpx2.ConnectTimeout as error:
        raise TransientError("no connection in time", reached=False) from error
    except httpx2.ProxyError as error:
        raise UnreachableError(f"{url}: the proxy refuses ({error})") from error
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise RefusedError(f"{url}: {error}") from error
    except httpx2.TransportError as error:
        raise TransientError(str(error) or type(error).__name__) from error


def check_answer(response: httpx2.Response, url: str, part: Path, start: int) -> None:
    """Raises the error that fits the status; returns for 200 and a fitting 206."""
    status = response.status_code
    if url.startswith("https:") and response.url.scheme != "https":
        raise RefusedError(f"{url} leads to {response.url}, which is not encrypted")
    if status in (404, 410):
        raise NotThereError(f"{url}: not there ({status})")
    if status in (401, 403):
        raise RefusedError(f"{url}: only for some accounts ({status}), and kd sends no token")
    if status == 416:
        drop(part)
        raise TransientError("the part that is here is not of that file")
    if status == 429 or status >= 500:
        pause = response.headers.get("Retry-After", "")
        raise TransientError(f"the server answers {status}", float(pause) if pause.isdecimal() else 0.0)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(f"{url}: the server compresses what was asked for as it is")
    if status == 206:
        given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if given is None or int(given[1]) != start:
            drop(part)
            raise TransientError("the server continues at another place")
    elif status != 200:
        raise RefusedError(f"{url}: the server answers {status}")


def check_size(url: str, part: Path, start: int, total: int | None, most: int) -> None:
    if total is not None and total > most:
        raise RefusedError(f"{url} has {total:,} bytes, and {most:,} at most are expected")
    free, needed = shutil.disk_usage(part.parent).free, (total or 0) - start
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"{url} takes {needed / 1e6:,.0f} MB more on the disk, and {part.parent} has {free / 1e6:,.0f} MB free: "
            "make room, or name another store with KD_STORE."
        )


def write(response: httpx2.Response, part: Path, start: int, total: int | None, most: int) -> None:
    size = start
    bar = tqdm(desc=part.name.removesuffix(".part"), initial=start, total=total, unit="B", unit_scale=True,
               leave=False, disable=not sys.stderr.isatty())  # fmt: skip
    with bar, part.open("r+b" if start else "wb") as file:
        file.seek(start)
        for chunk in response.iter_raw(CHUNK):
            size += len(chunk)
            if size > (most if total is None else total):
                raise RefusedError(f"{response.url} sends more than the {most if total is None else total:,} bytes")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and size < total:
        raise TransientError(f"the connection ended after {size:,} of {total:,} bytes")


def validator(response: httpx2.Response) -> str | None:
    """What names this content of the URL, so that a part of it is never completed with another's."""
    tag: str | None = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def promised(response: httpx2.Response) -> str | None:
    """The sha256 that the hub names for large files, in its own answer or in the one that leads on from it."""
    for one in (*response.history, response):
        tag = str(one.headers.get("X-Linked-Etag", "")).strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return tag
    return None


def commit(response: httpx2.Response) -> str | None:
    found = [one.headers["X-Repo-Commit"] for one in response.history if "X-Repo-Commit" in one.headers]
    return found[0] if found else None


def state_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def note(path: Path, state: dict[str, str | None]) -> None:
    write_text(state_of(path), json.dumps(state))


def stored(path: Path) -> dict[str, str]:
    """What ``note`` wrote; empty if nothing, or if it was cut off."""
    try:
        found = json.loads(state_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    state_of(part).unlink(missing_ok=True)
