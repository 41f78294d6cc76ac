// Checks received deliveries with the official Standard Webhooks library for Node: each as it came must be accepted,
// and each with one byte more, or with another secret, refused.
//
//   node verify.mjs FILE NODE_MODULES
//
// FILE is what tests/clients/python/scenario.py keeps: [{name, secret, headers, body: base64}].

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [file, modules] = process.argv.slice(2);
const { Webhook, WebhookVerificationError } = createRequire(resolve(modules, "_"))("standardwebhooks");

const deliveries = JSON.parse(readFileSync(file, "utf8"));
assert.ok(deliveries.length > 0, "there is nothing to verify");
for (const { name, secret, headers, body } of deliveries) {
  const bytes = Buffer.from(body, "base64");
  const asItCame = { jsonParse: false };
  new Webhook(secret).verify(bytes, headers, asItCame);
  for (const [other, changed] of [
    [secret, Buffer.concat([bytes, Buffer.from(" ")])],
    [Buffer.alloc(32, 1).toString("base64"), bytes],
  ]) {
    assert.throws(() => new Webhook(other).verify(changed, headers, asItCame), WebhookVerificationError, name);
  }
}
console.log(`node: ${deliveries.length} signatures verified`);
