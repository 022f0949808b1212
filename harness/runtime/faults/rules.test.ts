// SPDX-License-Identifier: Apache-2.0

import { status } from "@grpc/grpc-js";
import { expect, test } from "bun:test";
import { parseFault } from "./rules.ts";

test.each([
  ["StopSandbox: delay 3s", { method: "StopSandbox", delayMs: 3_000 }],
  ["GetSandbox: delay 20ms, 3 times", { method: "GetSandbox", delayMs: 20, times: 3 }],
  ["GetSandbox: hang, on call 2", { method: "GetSandbox", hang: true, from: 2, times: 1 }],
  ["GetSandbox: drop, from call 4", { method: "GetSandbox", drop: true, from: 4 }],
  ["DeleteSandbox: duplicate once", { method: "DeleteSandbox", duplicate: true, times: 1 }],
  ["WatchSandboxes: reorder", { method: "WatchSandboxes", reorder: true }],
  ["WatchSandboxes: end after 5 events", { method: "WatchSandboxes", end: { after: 5 } }],
  [
    "WatchSandboxes: end after 1 event UNAVAILABLE",
    { method: "WatchSandboxes", end: { after: 1, code: status.UNAVAILABLE } },
  ],
  [
    "CreateSandbox: fail RESOURCE_EXHAUSTED no room, sorry, on call 1",
    {
      method: "CreateSandbox",
      fail: { code: status.RESOURCE_EXHAUSTED, message: "no room, sorry" },
      from: 1,
      times: 1,
    },
  ],
  [
    "GetSandbox: rewrite sandbox.status.deleting=true",
    { method: "GetSandbox", response: { sandbox: { status: { deleting: true } } } },
  ],
  [
    "GetSandbox: rewrite sandbox.name=other",
    { method: "GetSandbox", response: { sandbox: { name: "other" } } },
  ],
])("%s is understood", (text, rule) => {
  expect(parseFault(text)).toEqual(rule as never);
});

test.each([
  ["delay 3s", "METHOD: WHAT was expected"],
  ["Stop: delay 3s", "there is no method Stop"],
  ["StopSandbox: delay", "it can be"],
  ["StopSandbox: fail NO_SUCH_CODE", "NO_SUCH_CODE is no status; there are OK, CANCELLED, UNKNOWN, "],
  ["StopSandbox: fail", "a status was expected; there are OK, CANCELLED"],
  ["StopSandbox: fail toString", "toString is no status"],
  ["WatchSandboxes: end after 3 events NOPE", "NOPE is no status"],
  ["StopSandbox: delay 99999999s", "a delay is an hour at most"],
  ["StopSandbox: delay -3s", "it can be"],
  ["StopSandbox: hang, on call 0", "calls are counted from 1"],
  ["StopSandbox: hang, 0 times", "calls are counted from 1"],
  ["StopSandbox: explode", "it can be"],
  ["StopSandbox: hang on", "it can be"],
  ["StopSandbox: end after 3 events", "StopSandbox is no watch"],
])("%s is refused with what can be said", (text, says) => {
  expect(() => parseFault(text)).toThrow(says);
});
