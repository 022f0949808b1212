// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { finding, leaveOut } from "./scenario.ts";

test.each([
  ['expect(received).toBe(expected)\n\nExpected: "READY"\nReceived: "STARTING"', '"READY"', '"STARTING"'],
  ["expected NOT_FOUND\n     saw INTERNAL: no", "NOT_FOUND", "INTERNAL: no"],
  [
    'expect(received).toEqual(expected)\n\n  {\n-   "code": "OK",\n-   "count": 1,\n+   "code": "INTERNAL",\n    "where": "here",\n  }\n\n- Expected  - 2\n+ Received  + 1\n',
    '"code": "OK", "count": 1',
    '"code": "INTERNAL"',
  ],
])("of %j it tells what was expected and what was seen", (message, expected, seen) => {
  expect(finding(message)).toEqual({ expected, seen });
});

test("lines about the sandboxes of other scenarios are left out, and about unknown ones are not", () => {
  const [mine, others, unknown] = [1, 2, 3].map((digit) => `46b9b912-ca4c-483e-87c0-00000000000${digit}`);
  const lines = () => [
    "INFO Starting",
    `INFO made sandbox_id=${mine}`,
    `INFO made sandbox_id=${others}`,
    `WARN cannot make sandbox_id=${unknown}`,
    `INFO ${others} makes room for ${mine}`,
  ];
  const result = {
    sandboxes: [mine!],
    logs: { gateway: lines(), driver: lines() },
    engine: [`openshell-default--a-${others} running`, `openshell-default--b-${mine} running`],
  };
  leaveOut(new Set([others!]), result);
  const kept = lines().filter((_, index) => index !== 2);
  expect(result.logs).toEqual({ gateway: kept, driver: kept });
  expect(result.engine).toEqual([`openshell-default--b-${mine} running`]);
});
