"""Alerts by e-mail, taken by an SMTP server that is not ours (aiosmtpd) and read by a parser that is not ours (Python's).

    mail.py serve FOLDER   prints a free port of 127.0.0.1 and keeps each mail as a file, until it is killed
    mail.py check FOLDER   makes an endpoint pass through states, and reads what came of it

The environment of `check`: HAWSER_ADDR (host:port) of a server that sends its mail there, and HAWSER_OPERATOR_KEY.
"""

import asyncio
import email
import email.policy
import email.utils
import os
import sys
import tempfile
import time
from pathlib import Path

from aiosmtpd.smtp import SMTP

from calls import PATIENCE, bearer, connect, generate

SENDER = "Hawser <hawser@example.com>"
PEOPLE = ["ops@example.com", "on-call@example.com"]
# Too long for one line of a header, and not ASCII.
NAME = "Größe & <Lieferung> – " + "sehr " * 14 + "lang"
REASON = "Wartung: 100 % = nichts geht <b>"


class Keeper:
    """Writes each mail with its envelope."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        kept = self.folder / f"{self.count:03}"
        kept.with_suffix(".to").write_text(f"{envelope.mail_from} {' '.join(envelope.rcpt_tos)}")
        # Complete when it is there.
        kept.with_suffix(".part").write_bytes(envelope.content)
        kept.with_suffix(".part").rename(kept.with_suffix(".eml"))
        return "250 kept"


async def serve(folder):
    keeper = Keeper(folder)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(keeper, hostname="mail.test"), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def until(folder, told):
    """Waits for all kinds of `told`, each to everyone; returns all that came until then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        came = sorted(folder.glob("*.eml"))
        texts = [read(file).get_content() for file in came]
        if all(sum(kind in text for text in texts) >= len(PEOPLE) for kind in told):
            return came
        # Another process's files cannot be awaited.
        time.sleep(0.05)
    raise SystemExit(f"no mail says {told}")


def read(file):
    return email.message_from_bytes(file.read_bytes(), policy=email.policy.default)


def check(folder, generated):
    generate(generated)
    from hawser.v1 import (
        alert_pb2,
        endpoint_pb2,
        endpoint_service_pb2,
        endpoint_service_pb2_grpc,
        project_pb2,
        project_service_pb2,
        project_service_pb2_grpc,
    )

    channel = connect()
    operator = {"metadata": bearer(os.environ["HAWSER_OPERATOR_KEY"]), "timeout": PATIENCE}
    projects = project_service_pb2_grpc.ProjectServiceStub(channel)
    endpoints = endpoint_service_pb2_grpc.EndpointServiceStub(channel)
    made = projects.CreateProject(
        project_service_pb2.CreateProjectRequest(project=project_pb2.Project(name="mail")), **operator
    )
    project = made.project.id
    kinds = ["endpoint.activated", "endpoint.deleted", "endpoint.paused"]
    alerts = alert_pb2.Alerts(emails=PEOPLE, on=kinds)
    endpoint = endpoint_pb2.Endpoint(url="http://127.0.0.1:9/hook", name=NAME, alerts=alerts)
    endpoint = endpoints.CreateEndpoint(
        endpoint_service_pb2.CreateEndpointRequest(project_id=project, endpoint=endpoint), **operator
    ).endpoint
    which = {"project_id": project, "endpoint_id": endpoint.id}
    for _ in range(2):
        # The second of each makes no transition.
        pause = endpoint_service_pb2.PauseEndpointRequest(reason=REASON, **which)
        endpoints.PauseEndpoint(pause, **operator)
    for _ in range(2):
        endpoints.ResumeEndpoint(endpoint_service_pb2.ResumeEndpointRequest(**which), **operator)

    # Its end is the last that is told of it, and what was told twice would be there by then.
    endpoints.DeleteEndpoint(endpoint_service_pb2.DeleteEndpointRequest(**which), **operator)
    came = until(folder, kinds)
    told = {}
    for file in came:
        mail = read(file)
        assert not mail.defects, (mail.defects, file)
        for name, value in mail.items():
            assert not getattr(value, "defects", ()), (name, value.defects)
        sender, *recipients = file.with_suffix(".to").read_text().split()
        assert sender == "hawser@example.com" and mail["from"] == SENDER, (sender, mail["from"])
        assert len(recipients) == 1 and str(mail["to"]) == recipients[0], (recipients, mail["to"])
        assert NAME in str(mail["subject"]), mail["subject"]
        assert mail["date"].datetime.tzinfo is not None
        assert max(len(line) for line in file.read_bytes().split(b"\r\n")) <= 998
        text = mail.get_content()
        kind = text.strip().splitlines()[-1].split()[0]
        if "paused" in str(mail["subject"]):
            assert REASON in text, text
        told.setdefault(kind, []).append((recipients[0], mail["message-id"]))
    assert sorted(told) == kinds, told
    for kind, each in told.items():
        assert sorted(to for to, _ in each) == sorted(PEOPLE), (kind, each)
    print(f"{len(came)} mails, one to each of {len(PEOPLE)} for each of {sorted(told)}")


if __name__ == "__main__":
    where = Path(sys.argv[2])
    if sys.argv[1] == "serve":
        asyncio.run(serve(where))
    else:
        with tempfile.TemporaryDirectory() as generated:
            check(where, generated)
