// Checks deliveries of every signature scheme in Node: STANDARD by the official Standard Webhooks library, the others by
// what their specifications say, with node:crypto. Each as it came must be accepted by whoever holds one of the keys, and
// with one byte more, or another key, refused.
//
//   node signatures.mjs FILE NODE_MODULES
//
// FILE is what tests/clients/python/signatures.py keeps: [{name, scheme, keys, headers, body: base64, header, hash,
// encoding}].

import assert from "node:assert/strict";
import { createHmac, createPublicKey, timingSafeEqual, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [file, modules] = process.argv.slice(2);
const { Webhook } = createRequire(resolve(modules, "_"))("standardwebhooks");

const equal = (a, b) => a.length === b.length && timingSafeEqual(a, b);

const accepts = {
  STANDARD(secret, { headers }, body) {
    try {
      new Webhook(secret).verify(body, headers, { jsonParse: false });
      return true;
    } catch {
      return false;
    }
  },
  // The key is a JWK, as it was published.
  ED25519(jwk, { headers }, body) {
    const key = createPublicKey({ key: jwk, format: "jwk" });
    const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
    return headers["webhook-signature"]
      .split(" ")
      .map((one) => one.split(","))
      .some(([version, value]) => version === "v1a" && verify(null, signed, key, Buffer.from(value, "base64")));
  },
  ADVANCED(secret, { headers, header, hash, encoding }, body) {
    const [time, ...signatures] = headers[header].split(",").map((part) => part.slice(part.indexOf("=") + 1));
    const mac = createHmac(hash.toLowerCase(), secret).update(`${time},`).update(body).digest();
    return signatures.some((one) => equal(Buffer.from(one, encoding.toLowerCase()), mac));
  },
  SIMPLE(secret, { headers, header, hash, encoding }, body) {
    const mac = createHmac(hash.toLowerCase(), secret).update(body).digest();
    return equal(Buffer.from(headers[header], encoding.toLowerCase()), mac);
  },
};

const deliveries = JSON.parse(readFileSync(file, "utf8"));
assert.equal(deliveries.length, 10);
let verified = 0;
for (const delivery of deliveries) {
  const { name, scheme, keys } = delivery;
  const body = Buffer.from(delivery.body, "base64");
  for (const key of keys) {
    assert.ok(accepts[scheme](key, delivery, body), name);
    assert.ok(!accepts[scheme](key, delivery, Buffer.concat([body, Buffer.from(" ")])), `${name}: another body`);
    verified += 1;
  }
  if (typeof keys[0] === "string") {
    const other = Buffer.alloc(32, 1).toString("base64");
    assert.ok(!accepts[scheme](other, delivery, body), `${name}: another key`);
  }
}
console.log(`node: ${verified} signatures of every scheme verified`);
