"""How a CronJob's pod makes a RayJob: against a stand-in for the API server, with a certificate of its own."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clusters import create_rayjob
from clusters.create_rayjob import create
from stages.base import StageError

RAY_JOB = {"kind": "RayJob", "metadata": {"generateName": "rondo-nightly-"}}


class Server(HTTPServer):
    """Answers with ``answer`` and notes what it was asked."""

    answer: tuple[int, bytes] = (201, b'{"metadata": {"name": "rondo-nightly-x7k2p"}}')
    asked: list[tuple[str, str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        status, text = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


def certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 in one file; the certificate alone is the account's ``ca.crt``."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "ca.crt").write_bytes(made)
    (folder / "both.pem").write_bytes(key.private_bytes(pem, pkcs8, plain) + made)
    (folder / "token").write_text("very-secret\n")
    (folder / "namespace").write_text("ml")
    return folder / "both.pem"


@pytest.fixture
def account(tmp_path: Path) -> Path:
    certificate(tmp_path / "account")
    return tmp_path / "account"


@pytest.fixture
def server(account: Path) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "both.pem")
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_rayjob_is_made_in_the_pods_own_namespace(server: Server, account: Path) -> None:
    assert create(RAY_JOB, "127.0.0.1", server.server_port, account) == "rondo-nightly-x7k2p"
    assert server.asked == [("/apis/ray.io/v1/namespaces/ml/rayjobs", "Bearer very-secret", RAY_JOB)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [((403, b'{"kind": "Status", "message": "rayjobs.ray.io is forbidden:\\n  not you"}'),
      r"no RayJob was made: Kubernetes refused \(403\): rayjobs.ray.io is forbidden: not you$"),
     ((404, b"404 page not found\n"), r"refused \(404\): 404 page not found$"),
     ((502, b'["bad gateway"]'), r"refused \(502\): \[\"bad gateway\"\]$"),
     ((200, b'{"metadata": {"name": "there"}}'), r"refused \(200\): .*there")],
)  # fmt: skip
def test_what_kubernetes_says_is_said(server: Server, account: Path, answer: tuple[int, bytes], message: str) -> None:
    server.answer = answer
    with pytest.raises(StageError, match=message):
        create(RAY_JOB, "127.0.0.1", server.server_port, account)


def test_the_token_reaches_no_server_with_another_certificate(server: Server, tmp_path: Path) -> None:
    certificate(tmp_path / "other")
    with pytest.raises(StageError, match=r"no RayJob was made: .*CERTIFICATE_VERIFY_FAILED"):
        create(RAY_JOB, "127.0.0.1", server.server_port, tmp_path / "other")
    assert server.asked == []


def test_without_a_server_or_an_account_it_says_so(server: Server, account: Path) -> None:
    with pytest.raises(StageError, match=r"no RayJob was made: .*No such file or directory: .*/nowhere/token"):
        create(RAY_JOB, "127.0.0.1", server.server_port, account / "nowhere")
    with pytest.raises(StageError, match=r"no RayJob was made: .*refused"):
        create(RAY_JOB, "127.0.0.1", 1, account)


def test_the_command_says_the_name_or_ends_with_one(
    server: Server, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rayjob.json").write_text(json.dumps(RAY_JOB))
    monkeypatch.setattr(sys, "argv", ["create_rayjob", str(tmp_path / "rayjob.json")])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    create_rayjob.main(account)
    assert capsys.readouterr().out == "rondo-nightly-x7k2p\n"
    assert server.asked[0][2] == RAY_JOB
    server.answer = (403, b'{"message": "no"}')
    with pytest.raises(SystemExit) as ended:
        create_rayjob.main(account)
    assert ended.value.code == "no RayJob was made: Kubernetes refused (403): no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage, in a pod of Kubernetes: python -m clusters.create_rayjob FILE"),
        (["gone.json"], "no RayJob was made: gone.json cannot be read: .*No such file"),
        (["broken.json"], "no RayJob was made: broken.json cannot be read: .*column 1"),
    ],
)
def test_a_wrong_file_ends_with_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("kind: RayJob")
    monkeypatch.setattr(sys, "argv", ["create_rayjob", *arguments])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(SystemExit, match=message):
        create_rayjob.main()


def test_outside_of_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["create_rayjob", "rayjob.json"])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit, match="usage, in a pod"):
        create_rayjob.main()
