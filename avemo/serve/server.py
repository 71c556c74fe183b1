"""The command `avemo serve`."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from avemo.imports import needs

TOKEN = "AVEMO_TOKEN"
"""The environment variable with the token: other users of a machine can read what stands on a command line."""

_LAST_PORT = 65535


def serve(
    checkpoint: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    root: Path | None = None,
    megabytes: int = 200,
    seconds: float = 120.0,
    workers: int = 2,
    waiting: int = 8,
    timeout: float = 60.0,
    face_detector: Path | None = None,
) -> None:
    """Serves a page on which clips can be dropped or recorded, and a JSON API (documented at /docs).

    On another host than this machine itself, requests need a token: the environment variable AVEMO_TOKEN has it.
    Uploads are deleted when they are answered. Ends with Ctrl-C.

    Args:
        checkpoint: a trained model (.safetensors), or a folder of `save_pretrained`.
        host: the address to listen on.
        port: likewise.
        root: folder of clips that may also be given by their path in it.
        megabytes: of an upload at most.
        seconds: of a clip at most.
        workers: clips that are decoded at once.
        waiting: clips that wait for that; further ones are refused with status 429.
        timeout: seconds that decoding a clip may take.
        face_detector: the YuNet model (.onnx) that the training cache was made with, if it was.

    Raises:
        FileNotFoundError: there is no checkpoint, or no root.
        ValueError: it is no checkpoint, the face detector is another one than in training, a limit is out of range,
            the host is not this machine and there is no token, or the extra `serve` is not installed.
    """
    from avemo.serve.limits import Limits

    limits = Limits(megabytes, seconds, workers, waiting, timeout)
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"port must lie in 0..{_LAST_PORT}, got {port}")
    token = os.environ.get(TOKEN) or None
    local = _is_loopback(host)
    if not local and token is None:
        raise ValueError(
            f"host {host} can be reached by others: set a token in the environment variable {TOKEN}"
        )
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"root {root} is no folder")
    needs("the server", "fastapi", "fastapi_offline", "uvicorn", "pebble", extra="serve")
    import uvicorn

    from avemo.serve.app import create_app
    from avemo.serve.service import Service

    # A page of somebody else's could have a name of its own point to this machine, and ask under that.
    hosts = ["localhost", "127.0.0.1", "[::1]", "::1", host] if local else ["*"]
    service = Service(checkpoint, face_detector, limits)
    app = create_app(service, token=token, root=root, hosts=hosts, at_end=service.close)
    print(f"http://{host}:{port}  (Ctrl-C ends it)")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
