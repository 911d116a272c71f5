"""Whether there is a network, and whether it may be used. A wait is short, whatever the network does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

OFFLINE = ("KD_OFFLINE", "HF_HUB_OFFLINE")
PROBE_SECONDS = 2.0


def offline() -> bool:
    """Whether the environment forbids every connection."""
    return any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in OFFLINE)


def hub_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def hub_address() -> tuple[str, int]:
    return address_of(hub_endpoint())


def address_of(url: str) -> tuple[str, int]:
    """Host and port that a connection to the URL would go to: a proxy's, if one is set for it."""
    address = urlparse(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    return address.hostname or "huggingface.co", address.port or (443 if address.scheme == "https" else 80)


def hub_reachable(seconds: float = PROBE_SECONDS) -> bool:
    return reachable([hub_endpoint()], seconds)


def reachable(urls: list[str], seconds: float = PROBE_SECONDS) -> bool:
    """Whether one of them can be asked: one attempt, bounded also where name look-ups or packets are dropped."""
    if offline():
        return False
    reached, left = threading.Event(), [*{address_of(url) for url in urls}]
    ended = threading.Semaphore(0)

    def probe(address: tuple[str, int]) -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=seconds):
            reached.set()
        ended.release()

    for address in left:  # a look-up that hangs must not hold the program
        threading.Thread(target=probe, args=(address,), daemon=True).start()
    end = time.monotonic() + seconds
    while left and not reached.is_set() and ended.acquire(timeout=max(0.0, end - time.monotonic())):
        left.pop()
    return reached.is_set()
