"""Deliveries of every signature scheme, verified by what is not ours.

STANDARD with HMAC secrets by the official Standard Webhooks library, with an ed25519 key (which no official library
verifies yet) by `cryptography`, over the key that the endpoint's key set publishes; ADVANCED and SIMPLE by Convoy's
library; ed25519 and ADVANCED also by the functions that docs/signing.md shows. In a rotation's grace a receiver that holds
only the old secret and one that holds only the new both accept.

Its environment: HAWSER_ADDR (host:port), HAWSER_PORTAL (host:port), HAWSER_OPERATOR_KEY, and HAWSER_KEEP, a file that
gets what was received for other verifiers to look at.
"""

import base64
import json
import os
import tempfile
import urllib.request
from pathlib import Path

import standardwebhooks
from convoy.utils.webhook import Webhook as ConvoyWebhook
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from calls import PATIENCE, bearer, connect, generate
from receiver import Receiver

BODY = '{ "invoice" : 1152921504606846977, "name": "Zoë" }\n'.encode()


def standard(secret, request, body):
    try:
        standardwebhooks.Webhook(secret).verify(body, request.headers, json_parse=False)
        return True
    except standardwebhooks.WebhookVerificationError:
        return False


def ed25519(public, request, body):
    """As the specification of Standard Webhooks says; `public` is 32 bytes."""
    key = Ed25519PublicKey.from_public_bytes(public)
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + body
    for signature in request.headers["webhook-signature"].split(" "):
        version, _, value = signature.partition(",")
        if version != "v1a":
            continue
        try:
            key.verify(base64.b64decode(value), signed)
            return True
        except InvalidSignature:
            pass
    return False


def convoy(secret, header, hash, encoding, body, advanced):
    """By convoy-python 0.2.0, around three quirks of its own.

    Of an advanced signature it checks the first `v1` only, and not over the time, which it is given here as part of the
    payload; and for base64 a good signature is None, and a bad one a message.
    """
    webhook = ConvoyWebhook(secret=secret, hash=hash, encoding=encoding)
    payload = body.decode()
    if advanced:
        payload = f"{header.split(',')[0].removeprefix('t=')},{payload}"
    return webhook.verify_signature(payload, header) in (True, None)


def documented():
    """The functions of docs/signing.md, in their order: for ed25519, and for ADVANCED with SHA-256 in hexadecimal."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "signing.md").read_text()
    functions = []
    for block in page.split("```python\n")[1:]:
        code = block.split("```")[0]
        if "def verify" in code:
            names = {}
            exec(code, names)
            functions.append(names["verify"])
    return functions


def first_signature_moved(header):
    """The same advanced header with its `v1` parts the other way round."""
    time, *signatures = header.split(",")
    return ",".join([time, *reversed(signatures)])


def run(generated):
    generate(generated)
    from hawser.v1 import (
        endpoint_pb2,
        endpoint_service_pb2,
        endpoint_service_pb2_grpc,
        event_service_pb2,
        event_service_pb2_grpc,
        project_pb2,
        project_service_pb2,
        project_service_pb2_grpc,
        secret_pb2,
        secret_service_pb2,
        secret_service_pb2_grpc,
    )

    channel = connect()
    projects = project_service_pb2_grpc.ProjectServiceStub(channel)
    endpoints = endpoint_service_pb2_grpc.EndpointServiceStub(channel)
    events = event_service_pb2_grpc.EventServiceStub(channel)
    secrets = secret_service_pb2_grpc.SecretServiceStub(channel)
    operator = {"metadata": bearer(os.environ["HAWSER_OPERATOR_KEY"]), "timeout": PATIENCE}
    request = project_service_pb2.CreateProjectRequest(project=project_pb2.Project(name="signatures"))
    project = projects.CreateProject(request, **operator).project.id
    documented_ed25519, documented_advanced = documented()
    kept, verified = [], 0

    with Receiver() as receiver:

        def create(signature=None, secret="", secret_type=secret_pb2.SECRET_TYPE_UNSPECIFIED):
            endpoint = endpoint_pb2.Endpoint(url=f"{receiver.url}/hooks", signature=signature)
            request = endpoint_service_pb2.CreateEndpointRequest(
                project_id=project, endpoint=endpoint, secret=secret, secret_type=secret_type
            )
            return endpoints.CreateEndpoint(request, **operator)

        def deliver(endpoint):
            request = event_service_pb2.PublishEventRequest(
                project_id=project, event_type="invoice.paid", endpoint_id=endpoint.id, payload=BODY
            )
            event = events.PublishEvent(request, **operator).event_id
            arrived = receiver.next(PATIENCE)
            assert arrived.headers["webhook-id"] == event and arrived.body == BODY, arrived
            return arrived

        def rotate(endpoint):
            request = secret_service_pb2.RotateSecretRequest(project_id=project, endpoint_id=endpoint.id)
            return secrets.RotateSecret(request, **operator)

        def keep(name, scheme, keys, arrived, **more):
            kept.append(
                {
                    "name": name,
                    "scheme": scheme,
                    "keys": keys,
                    "headers": arrived.headers,
                    "body": base64.b64encode(arrived.body).decode(),
                    **more,
                }
            )

        # STANDARD, before and during a rotation.
        made = create()
        arrived = deliver(made.endpoint)
        assert standard(made.secret, arrived, BODY) and not standard(made.secret, arrived, BODY + b" ")
        new = rotate(made.endpoint).value
        arrived = deliver(made.endpoint)
        assert standard(made.secret, arrived, BODY) and standard(new, arrived, BODY)
        assert not standard("whsec_" + base64.b64encode(bytes(32)).decode(), arrived, BODY)
        keep("standard", "STANDARD", [made.secret, new], arrived)
        verified += 2

        # The same with key pairs, of which the receiver knows what is published.
        made = create(secret_type=secret_pb2.SECRET_TYPE_ED25519)
        rotate(made.endpoint)
        arrived = deliver(made.endpoint)
        url = f"http://{os.environ['HAWSER_PORTAL']}/endpoints/{made.endpoint.id}/.well-known/jwks.json"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            published = json.load(answer)["keys"]
        assert len(published) == 2, published
        for jwk in published:
            assert {name: jwk[name] for name in ("kty", "crv", "alg")} == {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA"}
            assert set(jwk) == {"kty", "crv", "alg", "use", "kid", "x"}, jwk
            public = base64.urlsafe_b64decode(jwk["x"] + "=")
            assert ed25519(public, arrived, BODY) and not ed25519(public, arrived, BODY + b" ")
        shown = base64.b64decode(made.public_key.removeprefix("whpk_"))
        assert ed25519(shown, arrived, BODY)
        assert documented_ed25519(made.public_key, arrived.headers, BODY)
        assert not documented_ed25519(made.public_key, arrived.headers, BODY + b" ")
        keep("ed25519", "ED25519", published, arrived)
        verified += 2

        # ADVANCED and SIMPLE, as receivers of Convoy's verify them.
        for scheme in ("ADVANCED", "SIMPLE"):
            for hash in ("SHA256", "SHA512"):
                for encoding in ("HEX", "BASE64"):
                    name = f"{scheme} {hash} {encoding}"
                    settings = secret_pb2.SignatureSettings(
                        scheme=f"SIGNATURE_SCHEME_{scheme}",
                        header="X-Convoy-Signature",
                        hash=f"SIGNATURE_HASH_{hash}",
                        encoding=f"SIGNATURE_ENCODING_{encoding}",
                    )
                    secret = "a-secret-of-the-old-system"
                    endpoint = create(settings, secret).endpoint
                    new = rotate(endpoint).value
                    arrived = deliver(endpoint)
                    header = arrived.headers["x-convoy-signature"]

                    def accepts(secret, header, body, advanced=scheme == "ADVANCED", hash=hash, encoding=encoding):
                        return convoy(secret, header, hash.lower(), encoding.lower(), body, advanced)

                    assert accepts(new, header, BODY), name
                    assert not accepts(new, header, BODY + b" "), name
                    assert not accepts("another-secret", header, BODY), name
                    if name == "ADVANCED SHA256 HEX":
                        assert all(documented_advanced(one, header, BODY) for one in (new, secret))
                        assert not documented_advanced("another-secret", header, BODY)
                    if scheme == "ADVANCED":
                        assert accepts(secret, first_signature_moved(header), BODY), name
                    else:
                        assert not accepts(secret, header, BODY), f"{name}: the newest only"
                    live = [new, secret] if scheme == "ADVANCED" else [new]
                    keep(name, scheme, live, arrived, header="x-convoy-signature", hash=hash, encoding=encoding)
                    verified += len(live)

    if path := os.environ.get("HAWSER_KEEP"):
        Path(path).write_text(json.dumps(kept))
    print(f"python: {verified} signatures of every scheme verified")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="hawser-python.") as folder:
        run(folder)
