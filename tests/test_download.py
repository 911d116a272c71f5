"""One file from a server that misbehaves."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Files, serving

from kd.errors import UserError
from kd.library import download as module
from kd.library.download import NotThereError, RefusedError, UnreachableError, download, new_client

CONTENT = random.Random(0).randbytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
LARGE = 1 << 30


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACK_OFF", 0.001)
    monkeypatch.setattr(module, "CHUNK", 10_000)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files() -> Iterator[Files]:
    with serving() as found:
        found.content["/file"] = CONTENT
        yield found


def get(files: Files, path: Path, sha256: str | None = SUM, most: int = LARGE, url: str = "/file") -> str:
    with new_client() as client:
        return download(client, files.address + url, path, sha256, most).sha256


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    "faults",
    [[], ["cut"], ["cut"] * 4, [500], [503, "cut", 429, "cut", 500], ["slow"]],
    ids=["well", "cut", "cut-often", "500", "all", "slow"],
)
def test_it_arrives_whole(files: Files, tmp_path: Path, faults: list[int | str]) -> None:
    files.faults["/file"] = list(faults)
    assert get(files, tmp_path / "file") == SUM
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == [".file.json", "file"]
    assert files.times("/file") == len(faults) + (faults != ["slow"])


def test_what_is_here_is_not_asked_for_again(files: Files, tmp_path: Path) -> None:
    files.faults["/file"] = ["cut"]
    get(files, tmp_path / "file")
    ranges = [headers.get("range") for _, headers in files.asked]
    assert ranges == [None, f"bytes={len(CONTENT) // 2}-"]
    get(files, tmp_path / "file")
    assert files.times("/file") == 2


def test_nothing_is_sent_that_tells_who_asks(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    get(files, tmp_path / "file")
    assert all(not {"authorization", "cookie"} & headers.keys() for _, headers in files.asked)


def test_a_part_of_another_file_is_not_completed(files: Files, tmp_path: Path) -> None:
    files.faults["/file"] = ["cut", 500, 500, 500, 500]
    with pytest.raises(RefusedError, match="500"):
        get(files, tmp_path / "file")
    assert names(tmp_path) == [".file.part.json", "file.part"]
    files.content["/file"] = CONTENT[::-1]
    assert get(files, tmp_path / "file", None) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_without_a_name_for_the_content_it_begins_anew(files: Files, tmp_path: Path) -> None:
    files.tags = False
    files.faults["/file"] = ["cut"]
    get(files, tmp_path / "file")
    assert [headers.get("range") for _, headers in files.asked] == [None, None]


def test_a_server_without_ranges(files: Files, tmp_path: Path) -> None:
    files.ranges = False
    files.faults["/file"] = ["cut"]
    assert get(files, tmp_path / "file") == SUM


def test_wrong_bytes_leave_nothing(files: Files, tmp_path: Path) -> None:
    files.faults["/file"] = ["other"]
    with pytest.raises(RefusedError, match="has the sha256 .* expected is"):
        get(files, tmp_path / "file")
    assert names(tmp_path) == []


def test_wrong_bytes_behind_a_right_part_are_tried_once_more(files: Files, tmp_path: Path) -> None:
    files.faults["/file"] = ["cut", 500, 500, 500, 500]
    with pytest.raises(RefusedError):
        get(files, tmp_path / "file")
    files.faults["/file"] = ["other"]
    assert get(files, tmp_path / "file") == SUM


def test_the_hubs_own_sum_counts(files: Files, tmp_path: Path) -> None:
    files.moved["/here"] = "/file"
    files.more["/here"] = {"X-Linked-Etag": f'"{SUM}"', "X-Repo-Commit": "c0ffee"}
    with new_client() as client:
        assert download(client, f"{files.address}/here", tmp_path / "file", None, LARGE).commit == "c0ffee"
    files.more["/here"] = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(RefusedError, match="0000"):
        get(files, tmp_path / "other", None, url="/here")


def test_redirects_end(files: Files, tmp_path: Path) -> None:
    files.moved["/circle"] = "/circle"
    with pytest.raises(RefusedError, match="redirect"):
        get(files, tmp_path / "file", url="/circle")


def test_what_is_not_there_is_asked_for_once(files: Files, tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="404"):
        get(files, tmp_path / "file", url="/gone")
    assert files.times("/gone") == 1
    files.faults["/file"] = [401]
    with pytest.raises(RefusedError, match="kd sends no token"):
        get(files, tmp_path / "file")


def test_more_bytes_than_expected(files: Files, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="300,000 bytes, and 299,999 at most"):
        get(files, tmp_path / "file", most=299_999)
    assert names(tmp_path) == []


def test_a_disk_without_room(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("kd.library.download.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match="takes 0 MB more on the disk"):
        get(files, tmp_path / "file")
    assert names(tmp_path) == []


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"no connection .*\(2 times in a row\)"):
        get(Files("http://127.0.0.1:9"), tmp_path / "file")


def test_the_proxy_of_the_environment_is_used(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", files.address)
    files.content["http://example.invalid/file"] = CONTENT  # as a proxy is asked
    with new_client() as client:
        assert download(client, "http://example.invalid/file", tmp_path / "file", SUM, LARGE).sha256 == SUM
    monkeypatch.setenv("HTTP_PROXY", "gopher://example.invalid")
    with pytest.raises(UserError, match="proxy"):
        new_client()


def test_certificates_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(UserError, match="certificates .*gone.pem cannot be read"):
        new_client()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_certificates_come_from_the_environment(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate nobody vouches for is refused, until its file is named."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=loopback", "-addext",
            "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(line, check=True, capture_output=True)
    with serving(certificate, key) as secure:
        secure.content["/file"] = CONTENT
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UnreachableError, match="not trusted here; name your network's CA file in SSL_CERT_FILE"):
            get(secure, tmp_path / "file")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert get(secure, tmp_path / "file") == SUM
        secure.moved["/open"] = f"{files.address}/file"
        with pytest.raises(RefusedError, match="which is not encrypted"):
            get(secure, tmp_path / "other", url="/open")
