"""What a service written in Python does with Hawser, from the contract alone.

It makes a project, a key and an endpoint, publishes, watches until delivered, checks the signature with the official
Standard Webhooks library, and reads an error's details. Its environment: HAWSER_ADDR (host:port),
HAWSER_OPERATOR_KEY, and HAWSER_KEEP, a file that gets the received requests for other verifiers to look at.
"""

import base64
import json
import os
import tempfile
from pathlib import Path

import grpc
import standardwebhooks
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from calls import PATIENCE, bearer, connect, generate
from receiver import Receiver

# Bodies that a service which parses and prints JSON again would change.
PAYLOADS = {
    "odd spacing": b'{ "id" :  1 ,\n\t"b":[ ] }\r\n',
    "repeated keys": b'{"a":1,"a":2}',
    "large integers": b'{"n":1152921504606846976,"m":1152921504606846977,"f":1.10}',
    "text beyond ASCII": '{"name":"Zoë","escaped":"\\u00eb","emoji":"🚢"}'.encode(),
    "no JSON at all": b"plain text, not JSON",
    "nothing": b"",
}
# No official library takes bytes that are not text; that these arrive unchanged is checked all the same.
INVALID_UTF8 = b'{"x":"\xff\xfe\x00"}'


def expect_error(code, call, *args, **kwargs):
    """Makes a call that must fail with `code`; returns the details by type."""
    try:
        answer = call(*args, **kwargs)
    except grpc.RpcError as error:
        assert error.code() == code, f"expected {code}, got {error.code()}: {error.details()}"
        status = rpc_status.from_call(error)
        details = {}
        for packed in status.details if status else []:
            for kind in (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo, error_details_pb2.ResourceInfo):
                if packed.Is(kind.DESCRIPTOR):
                    details[kind] = kind()
                    packed.Unpack(details[kind])
        return details
    raise AssertionError(f"expected {code}, got {answer}")


def run(generated):
    generate(generated)
    from hawser.v1 import (
        delivery_pb2,
        delivery_service_pb2,
        delivery_service_pb2_grpc,
        endpoint_pb2,
        endpoint_service_pb2,
        endpoint_service_pb2_grpc,
        event_service_pb2,
        event_service_pb2_grpc,
        project_pb2,
        project_service_pb2,
        project_service_pb2_grpc,
        watch_service_pb2,
        watch_service_pb2_grpc,
    )

    channel = connect()
    projects = project_service_pb2_grpc.ProjectServiceStub(channel)
    endpoints = endpoint_service_pb2_grpc.EndpointServiceStub(channel)
    events = event_service_pb2_grpc.EventServiceStub(channel)
    deliveries = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
    watches = watch_service_pb2_grpc.WatchServiceStub(channel)

    # A project, and a key that may do everything in it.
    operator = bearer(os.environ["HAWSER_OPERATOR_KEY"])
    project = projects.CreateProject(
        project_service_pb2.CreateProjectRequest(project=project_pb2.Project(name="python")),
        metadata=operator,
        timeout=PATIENCE,
    ).project
    created = projects.CreateApiKey(
        project_service_pb2.CreateApiKeyRequest(
            api_key=project_pb2.ApiKey(
                project_id=project.id,
                name="python",
                scopes=[number for number in project_pb2.Scope.values() if number != 0],
            )
        ),
        metadata=operator,
        timeout=PATIENCE,
    )
    key = {"metadata": bearer(created.secret), "timeout": PATIENCE}

    with Receiver() as receiver:
        endpoint = endpoints.CreateEndpoint(
            endpoint_service_pb2.CreateEndpointRequest(
                endpoint=endpoint_pb2.Endpoint(name="python", url=f"{receiver.url}/hooks", owner_id="customer-1"),
                event_types=["invoice.*"],
            ),
            **key,
        )
        assert endpoint.endpoint.status == endpoint_pb2.ENDPOINT_STATUS_ACTIVE, endpoint
        verifier = standardwebhooks.Webhook(endpoint.secret)
        other = standardwebhooks.Webhook(base64.b64encode(bytes(32)).decode())

        # The first bookmark says that the watch stands: what is published from here on is in it.
        watch = watches.Watch(
            watch_service_pb2.WatchRequest(
                now=watch_service_pb2.StartNow(), kinds=[watch_service_pb2.CHANGE_KIND_DELIVERY]
            ),
            metadata=key["metadata"],
            timeout=2 * PATIENCE,
        )
        assert next(watch).WhichOneof("change") == "bookmark"

        kept = []
        for name, payload in [*PAYLOADS.items(), ("invalid UTF-8", INVALID_UTF8)]:
            published = events.PublishEvent(
                event_service_pb2.PublishEventRequest(
                    event_type="invoice.paid", owner_id="customer-1", payload=payload, headers={"x-case": name}
                ),
                **key,
            )
            assert published.delivery_count == 1, (name, published)

            request = receiver.next(PATIENCE)
            assert request.body == payload, (name, request.body, payload)
            assert request.path == "/hooks", request.path
            assert request.headers["webhook-id"] == published.event_id, (name, request.headers)
            assert request.headers["x-case"] == name, (name, request.headers)
            if payload is not INVALID_UTF8:
                verifier.verify(payload, request.headers, json_parse=False)
                expect_refused(other, payload, request.headers)
                expect_refused(verifier, payload + b" ", request.headers)
                kept.append(
                    {
                        "name": name,
                        "secret": endpoint.secret,
                        "headers": request.headers,
                        "body": base64.b64encode(request.body).decode(),
                    }
                )

            seen = until_delivered(watch, published.event_id, delivery_pb2)
            listed = deliveries.ListDeliveries(
                delivery_service_pb2.ListDeliveriesRequest(event_id=published.event_id), **key
            ).deliveries
            assert [one.id for one in listed] == [seen.id], (name, listed)
            assert request.headers["hawser-delivery-id"] == seen.id, (name, request.headers)

            stored = events.GetEvent(event_service_pb2.GetEventRequest(event_id=published.event_id), **key).event
            assert stored.payload == payload, (name, stored)
        watch.cancel()

        # What no subscription matches goes nowhere, and the reply says so.
        unmatched = events.PublishEvent(
            event_service_pb2.PublishEventRequest(event_type="user.created", owner_id="customer-1", payload=b"{}"),
            **key,
        )
        assert unmatched.delivery_count == 0, unmatched

    # Errors name the field, the reason, the resource.
    details = expect_error(
        grpc.StatusCode.INVALID_ARGUMENT,
        endpoints.CreateEndpoint,
        endpoint_service_pb2.CreateEndpointRequest(endpoint=endpoint_pb2.Endpoint(url="https://user:pw@example.com/")),
        **key,
    )
    fields = [violation.field for violation in details[error_details_pb2.BadRequest].field_violations]
    assert fields == ["endpoint.url"], fields
    assert details[error_details_pb2.ErrorInfo].reason, details

    # A key sees its own project only, and nothing says that another exists.
    foreign = projects.CreateProject(
        project_service_pb2.CreateProjectRequest(project=project_pb2.Project(name="other")),
        metadata=operator,
        timeout=PATIENCE,
    ).project
    expect_error(
        grpc.StatusCode.NOT_FOUND,
        endpoints.ListEndpoints,
        endpoint_service_pb2.ListEndpointsRequest(project_id=foreign.id),
        **key,
    )
    expect_error(
        grpc.StatusCode.UNAUTHENTICATED,
        endpoints.ListEndpoints,
        endpoint_service_pb2.ListEndpointsRequest(project_id=project.id),
        timeout=PATIENCE,
    )

    if keep := os.environ.get("HAWSER_KEEP"):
        Path(keep).write_text(json.dumps(kept))
    print(f"python: {len(PAYLOADS) + 1} events delivered as published, {len(kept)} signatures verified")


def expect_refused(verifier, payload, headers):
    try:
        verifier.verify(payload, headers, json_parse=False)
    except standardwebhooks.WebhookVerificationError:
        return
    raise AssertionError("a signature was accepted that must not be")


def until_delivered(watch, event_id, delivery_pb2):
    """Reads the watch up to the success of the event's delivery, which it returns."""
    statuses = []
    for response in watch:
        if response.WhichOneof("change") != "delivery_change":
            continue
        delivery = response.delivery_change.delivery
        if delivery.event_id != event_id:
            continue
        statuses.append(delivery_pb2.DeliveryStatus.Name(delivery.status))
        if delivery.status == delivery_pb2.DELIVERY_STATUS_SUCCESS:
            assert delivery.attempt_count == 1, delivery
            return delivery
    raise AssertionError(f"the watch ended before {event_id} was delivered; it showed {statuses}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="hawser-python.") as folder:
        run(folder)
