// SPDX-License-Identifier: Apache-2.0

/** A stack that `up` keeps: who uses it says so, with the faults that it has; a run that counts does not use it. */
import { ROOT } from "../base/root.ts";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = mkdtempSync(join(tmpdir(), "up-"));
const env = {
  PATH: process.env.PATH,
  HOME: process.env.HOME,
  OPENSHELL_E2E_RUN_DIR: join(folder, "runs"),
  OPENSHELL_E2E_REPORTS: join(folder, "reports"),
};
setDefaultTimeout(60_000);

const FAULT = "CreateSandbox: fail UNAVAILABLE boo";
let kept: Bun.Subprocess<"ignore", "pipe", "inherit">;
let run = "";

beforeAll(async () => {
  const argv = ["harness.ts", "up", "--fault", FAULT, "--fault", "StopSandbox: delay 1s"];
  kept = Bun.spawn([process.execPath, ...argv], {
    cwd: ROOT,
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  let said = "";
  for await (const text of kept.stdout.pipeThrough(new TextDecoderStream())) {
    said += text;
    if (said.includes("Ctrl-C")) break;
  }
  run = /runs\/([0-9a-f]{8})\//.exec(said)?.[1] ?? "";
});

afterAll(async () => {
  kept.kill("SIGTERM");
  await kept.exited;
  rmSync(folder, { recursive: true, force: true });
});

async function bun(...args: string[]) {
  const child = Bun.spawn([process.execPath, ...args], { cwd: ROOT, env, stdout: "pipe", stderr: "pipe" });
  const [output, errors] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, said: output + errors };
}

const attached = () => `attached to run ${run}, kept by up; faults: ${FAULT}; StopSandbox: delay 1s\n`;

test("bun test attaches, and says so", async () => {
  const { code, said } = await bun("test", "./scenarios/external-podman/smoke.test.ts", "-t", "SM-02");
  expect(said).toContain(attached());
  // Nobody else is blamed for what was arranged.
  expect(said).toContain(`on purpose: fault CreateSandbox: fail with UNAVAILABLE "boo"`);
  expect(code).toBe(1);
});

test("with attaches, and says so", async () => {
  const { code, said } = await bun("harness.ts", "with", "--", "true");
  expect(said).toContain(attached());
  expect(code).toBe(0);
});

test("the entry command has a stack of its own", async () => {
  const { code, said } = await bun("harness.ts", "test", "external-podman", "-t", "SM-02");
  expect(said).not.toContain("attached to run");
  expect(said).toContain("external-podman: 1 passed, 0 failed");
  expect(code).toBe(0);
});
