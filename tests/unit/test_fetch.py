"""Downloads from a real TLS server: https alone, whole, of a bounded size, and every failure is a line."""

import http.server
import shutil
import ssl
import subprocess
import threading

import pytest

from workflow.data import fetch
from workflow.data.build import DataError, build
from workflow.keys import hash_file
from workflow.sections import Url


class Pages(http.server.BaseHTTPRequestHandler):
    """/good, /lead/SCHEME..., /short (says 100 bytes, sends 5), /drop, /garbage, /500."""

    def do_GET(self):
        if self.path.startswith("/lead/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/lead/"))
            self.end_headers()
        elif self.path == "/drop":
            self.connection.close()
        elif self.path == "/garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        elif self.path == "/500":
            self.send_error(500, "broken \x1b[31m")
        else:
            body = b"x" * 4096 if self.path == "/large" else b"bytes"
            self.send_response(200)
            self.send_header("Content-Length", "100" if self.path == "/short" else str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key", "-out", folder / "cert"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def server(certificate, monkeypatch):
    """Base address of the server; its certificate is trusted for this test."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    listening = http.server.ThreadingHTTPServer(("localhost", 0), Pages)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"https://localhost:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


def entry(url: str) -> Url:
    return Url(name="u", kind="url", rows_are="raw", url=url, md5="0" * 32)


@pytest.mark.parametrize("path", ["/good", "/lead//good"])
def test_a_file_is_fetched_through_redirects_within_https(server, tmp_path, path):
    target = tmp_path / "file"
    assert build(entry(server + path), [], target)["md5"] == hash_file(target, "md5")
    assert target.read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/lead/http://localhost:1/a", "leads on to http:, and only https is followed"),
        ("/lead/file:///etc/passwd", "is not allowed"),
        ("/lead/ftp://localhost/a", "leads on to ftp:"),
        ("/lead/data:text/plain,a", "is not allowed"),
        ("/short", "IncompleteRead"),
        ("/drop", ""),
        ("/garbage", ""),
        ("/500", "HTTP Error 500"),
    ],
)
def test_what_goes_wrong_is_a_line(server, tmp_path, path, told):
    with pytest.raises(DataError) as caught:
        build(entry(server + path), [], tmp_path / "file")
    message = str(caught.value)
    assert message.startswith(f"data (u): {server}{path}: ")
    assert told in message
    assert "\n" not in message
    assert "\x1b" not in message


def test_a_redirect_without_end_is_a_line(server, tmp_path):
    with pytest.raises(DataError, match=r"data \(u\)"):
        build(entry(server + "/lead/" * 40 + "/good"), [], tmp_path / "file")


def test_a_file_without_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST_DOWNLOAD", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        build(entry(server + "/large"), [], tmp_path / "file")


def test_a_certificate_that_nobody_vouches_for_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
        build(entry(server + "/good"), [], tmp_path / "file")


def test_an_address_that_nobody_answers_at_is_a_line(tmp_path, free_tcp_port):
    with pytest.raises(DataError, match=r"data \(u\): https://localhost:\d+/a: .*refused"):
        build(entry(f"https://localhost:{free_tcp_port}/a"), [], tmp_path / "file")
