// SPDX-License-Identifier: Apache-2.0

/** One sandbox, from its creation to its end: what must work before anything else is worth a look. */
import { expect } from "bun:test";
import { refusal, scenario } from "../../harness.ts";
import { A_MOMENT } from "./sandboxes.ts";

scenario("SM-01 a sandbox that was accepted is Provisioning, and then Ready", async ({ gateway }) => {
  const sandbox = await gateway.createSandbox();
  expect(sandbox.phase).toBe("PROVISIONING");
  await sandbox.ready();
  expect(sandbox.seen.status?.conditions).toMatchObject([{ type: "Ready", status: "True" }]);
  expect(await gateway.listSandboxes()).toContain(sandbox.name);
});

scenario("SM-02 a command in a sandbox has its output and exit code", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const { stdout, stderr, exitCode } = await sandbox.exec([
    "sh",
    "-c",
    `echo out; echo err >&2; ${A_MOMENT}; exit 3`,
  ]);
  expect({ stdout, stderr, exitCode }).toEqual({ stdout: "out\n", stderr: "err\n", exitCode: 3 });
});

scenario("SM-03 a sandbox's log tells of its creation and of its supervisor", async ({ anySandbox }) => {
  const sandbox = await anySandbox();
  const log = await sandbox.logs();
  expect(log).toContain("CreateSandbox request completed successfully");
  expect(log).toContain("supervisor session: accepted");
  expect(await sandbox.logs(1)).toHaveLength(1);
});

scenario("SM-04 a deleted sandbox is neither listed nor found", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  expect(await sandbox.delete()).toBe(true);
  expect(await gateway.listSandboxes()).not.toContain(sandbox.name);
  const notFound = { code: "NOT_FOUND", message: "sandbox not found" };
  expect(await refusal(gateway.getSandbox(sandbox.name))).toEqual(notFound);
});
