"""``python -m clusters.create_rayjob FILE``: make the RayJob that a file describes, from a pod of the same cluster.

This is what a CronJob of Kubernetes runs on clusters without KubeRay's RayCronJob. It takes nothing but Python's own
library: the pod's service account has a token, and the API server's certificate is checked by the account's ``ca.crt``.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from pathlib import Path
from typing import Any

from stages.base import StageError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 60
"""For which the API server may take."""


def create(ray_job: dict[str, Any], host: str, port: int, account: Path = _ACCOUNT) -> str:
    """Make a RayJob in the pod's own namespace; returns the name that it was given.

    Raises:
        StageError: the API server refuses it, or cannot be reached.
    """
    try:
        token, namespace = ((account / name).read_text().strip() for name in ("token", "namespace"))
        checked = ssl.create_default_context(cafile=str(account / "ca.crt"))
        server = http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=checked)
        try:
            server.request(
                "POST", f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs", json.dumps(ray_job),
                {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"},
            )  # fmt: skip
            answer = server.getresponse()
            status, text = answer.status, answer.read().decode(errors="replace")
        finally:
            server.close()
    except (OSError, http.client.HTTPException) as error:
        raise StageError(f"no RayJob was made: {_line(str(error)) or type(error).__name__}") from None
    try:
        said = json.loads(text)
        if status == http.client.CREATED:
            return str(said["metadata"]["name"])
        reason = said["message"]
    except (ValueError, KeyError, TypeError):
        reason = text  # of something that stands before the API server
    raise StageError(f"no RayJob was made: Kubernetes refused ({status}): {_line(str(reason))}")


def _line(text: str) -> str:
    return " ".join(text.split())


def main(account: Path = _ACCOUNT) -> None:
    if len(sys.argv) != 2 or "KUBERNETES_SERVICE_HOST" not in os.environ:
        sys.exit("usage, in a pod of Kubernetes: python -m clusters.create_rayjob FILE")
    try:
        ray_job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"no RayJob was made: {sys.argv[1]} cannot be read: {error}")
    try:
        address = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
        name = create(ray_job, *address, account)
    except StageError as error:
        sys.exit(str(error))
    print(name)


if __name__ == "__main__":
    main()
