// Calls a running server as a web page would: gRPC-Web by Connect's client for browsers, over HTTP/1.1. The messages
// are made from the contract's image at run time, so nothing is generated.
//
//   node scenario.mjs NODE_MODULES IMAGE
//
// HAWSER_ADDR and HAWSER_OPERATOR_KEY name the server.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [modules, image] = process.argv.slice(2);
const load = createRequire(resolve(modules, "_"));
const { createFileRegistry, fromBinary } = load("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = load("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = load("@connectrpc/connect");
const { createGrpcWebTransport } = load("@connectrpc/connect-web");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(image)));
const transport = createGrpcWebTransport({ baseUrl: `http://${process.env.HAWSER_ADDR}` });
const client = (name) => createClient(registry.getService(`hawser.v1.${name}`), transport);
const [projects, endpoints, events, watches] =
  ["ProjectService", "EndpointService", "EventService", "WatchService"].map(client);
const operator = { headers: { authorization: `Bearer ${process.env.HAWSER_OPERATOR_KEY}` } };

async function refusal(call) {
  try {
    await call;
  } catch (error) {
    return ConnectError.from(error);
  }
  assert.fail("the call was not refused");
}

const { project } = await projects.createProject({ project: { name: "web" } }, operator);
const projectId = project.id;

const denied = await refusal(endpoints.listEndpoints({ projectId }));
assert.equal(denied.code, Code.Unauthenticated);

const bad = await refusal(endpoints.createEndpoint({ projectId, endpoint: { url: "http://169.254.169.254/" } }, operator));
assert.equal(bad.code, Code.InvalidArgument);
assert.ok(bad.message.includes("endpoint.url"), bad.message);
assert.deepEqual(bad.details.map((detail) => detail.type).sort(), ["google.rpc.BadRequest", "google.rpc.ErrorInfo"]);

const { endpoint } = await endpoints.createEndpoint({ projectId, endpoint: { url: "http://127.0.0.1:9/" } }, operator);
const listed = await endpoints.listEndpoints({ projectId }, operator);
assert.deepEqual(listed.endpoints.map((one) => one.id), [endpoint.id]);

// A stream: first a bookmark, then what happens.
let event;
const seen = new AbortController();
for await (const { change } of watches.watch({ projectId }, { ...operator, signal: seen.signal })) {
  if (change.case === "bookmark" && event === undefined) {
    const target = { case: "endpointId", value: endpoint.id };
    const payload = new TextEncoder().encode("{}");
    event = await events.publishEvent({ projectId, eventType: "web.test", target, payload }, operator);
  }
  if (change.case === "deliveryChange" && change.value.delivery.eventId === event?.eventId) break;
}
// Leaving the loop alone would leave the request open.
seen.abort();

// The server ends a stream at its client's deadline.
const late = async () => {
  for await (const _ of watches.watch({ projectId }, { ...operator, timeoutMs: 300 }));
};
assert.equal((await refusal(late())).code, Code.DeadlineExceeded);
console.log("connect-web: calls, a stream, refusals with details and a deadline, over gRPC-Web");
