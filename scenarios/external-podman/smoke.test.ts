// SPDX-License-Identifier: Apache-2.0

import { expect } from "bun:test";
import { scenario } from "../../harness.ts";

scenario("SM-01 a sandbox that was created becomes Ready", async ({ gateway }) => {
  const sandbox = await gateway.createSandbox();
  await sandbox.ready();
  expect(sandbox.phase).toBe("READY");
});

scenario("SM-02 a command in a sandbox has its output and exit code", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  const { stdout, stderr, exitCode } = await sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]);
  expect({ stdout, stderr, exitCode }).toEqual({ stdout: "out\n", stderr: "err\n", exitCode: 3 });
});
