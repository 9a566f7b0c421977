"""Fetch data from elsewhere: a public file by https, or a data set of the hub at a commit."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from workflow.errors import describe_os_error, printable
from workflow.sections import Hub, Url
from workflow.store import StoreError

LARGEST_DOWNLOAD = 4 * 1024**3  # bytes
_CHUNK = 1 << 20


class DataError(StoreError):
    """A data set cannot be made, or has other bytes than the lock says: what, where, what to do."""


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith("https://"):
            raise urllib.error.URLError(f"it leads on to {newurl.split(':', 1)[0]}:, and only https is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(entry: Url, target: Path) -> None:
    """Write the file at the entry's address to `target`.

    Raises:
        DataError: no https, no answer, a redirect to another scheme, or more than LARGEST_DOWNLOAD bytes.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPSHandler,
        urllib.request.ProxyHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _HttpsOnly,
    ):
        opener.add_handler(handler())
    try:
        with opener.open(entry.url, timeout=60) as answer, open(target, "wb") as file:
            size = 0
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > LARGEST_DOWNLOAD:
                    raise DataError(
                        f"data ({entry.name}): {entry.url} sends more than {LARGEST_DOWNLOAD:,} bytes. Fetch it by "
                        "hand and make it a `kind: file`."
                    )
                file.write(chunk)
            short = answer.length  # None if unknown, else what the server promised and did not send
        if short:
            raise http.client.IncompleteRead(b"", short)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if describe_os_error(error, target):
            raise
        reason = printable(str(error) or type(error).__name__).replace("\n", " ")[:300]
        raise DataError(f"data ({entry.name}): {entry.url}: {reason}. Run this where the network is.") from None


def fetch_rows(entry: Hub, revision: str, target: Path) -> Any:
    """Rows of a hub data set at a commit.

    Raises:
        DataError: the hub does not answer, has no such data set, or sends what `datasets` cannot read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from httpx2 import HTTPError
    from pyarrow import ArrowException

    try:
        return load_dataset(entry.repo, entry.subset, split=entry.split, revision=revision)
    # RuntimeError: a data set with code of its own, which `datasets` refuses
    except (HTTPError, DatasetsError, ArrowException, OSError, ValueError, RuntimeError) as error:
        if describe_os_error(error, target):
            raise
        reason = printable(" ".join(str(error).split()))[:200]
        raise DataError(
            f"data ({entry.name}): {entry.repo} at {revision} cannot be fetched ({type(error).__name__}: {reason}). "
            "Run it where the hub can be reached, and hold `subset` and `split` against the hub's page."
        ) from None
