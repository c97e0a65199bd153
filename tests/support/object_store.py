"""An object store of its own for a test: moto's S3 server on this machine, which can go away and come back."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BUCKET = "corpus"


class ObjectStore:
    """A server with one bucket.

    Attributes:
        client: boto3's, with credentials.
    """

    def __init__(self, boto3: Any, moto: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._moto, self.endpoint = moto, f"http://127.0.0.1:{self._port}"
        self.start()
        reset = urllib.request.Request(f"{self.endpoint}/moto-api/reset", method="POST")  # a process has one memory
        urllib.request.urlopen(reset, timeout=30).close()
        secret = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=self.endpoint, **secret)
        self.client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        self._server = self._moto.ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def put(self, key: str, content: bytes) -> str:
        """Returns the address."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def put_file(self, key: str, path: Path) -> str:
        return self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def keys(self, prefix: str = "") -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in listed]

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server, and the environment that leads to it."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    made = ObjectStore(boto3, moto)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("S3_ENDPOINT_URL", made.endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    try:
        yield made
    finally:
        made.stop()
