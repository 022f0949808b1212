// SPDX-License-Identifier: Apache-2.0

/** What is recorded of a check's calls. */
import { expect, test } from "bun:test";
import { shortened } from "./driver.ts";

test("of a long text as much is recorded as tells what it is", () => {
  const request = {
    sandbox: { name: "box", spec: { command: ["true", "x".repeat(30_000)], environment: { K: "short" } } },
    bytes: Buffer.alloc(36_000),
    count: 3,
    nothing: null,
  };
  expect(shortened(request)).toEqual({
    sandbox: {
      name: "box",
      spec: { command: ["true", `${"x".repeat(1_000)}… (30000 characters)`], environment: { K: "short" } },
    },
    bytes: "36000 bytes",
    count: 3,
    nothing: null,
  });
});
