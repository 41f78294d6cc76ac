"""The contract's generated Python client, and how it is called: what the scenarios here share."""

import os
import sys
from pathlib import Path

import grpc
import grpc_tools
from grpc_tools import protoc

# Well beyond what anything here takes; a test that waits longer has found a fault.
PATIENCE = 20


def generate(out):
    """Generates the client from proto/, as a user would."""
    proto = Path(__file__).resolve().parents[3] / "proto"
    included = Path(grpc_tools.__file__).parent / "_proto"
    # google.api comes ready-made with grpcio-status.
    files = [str(file) for part in ("buf", "hawser") for file in sorted((proto / part).rglob("*.proto"))]
    options = [f"-I{proto}", f"-I{included}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        raise SystemExit("protoc refused the contract")
    sys.path.insert(0, out)


def bearer(key):
    return [("authorization", f"Bearer {key}")]


def connect():
    channel = grpc.insecure_channel(os.environ["HAWSER_ADDR"])
    grpc.channel_ready_future(channel).result(timeout=PATIENCE)
    return channel
