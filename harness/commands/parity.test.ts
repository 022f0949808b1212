// SPDX-License-Identifier: Apache-2.0

/** What `parity` says when there is nothing to compare with. */
import { ROOT } from "../base/root.ts";
import { expect, setDefaultTimeout, test } from "bun:test";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

test("parity without a real gateway is one clear line and exit code 2", async () => {
  const child = Bun.spawn([process.execPath, "harness.ts", "parity"], {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? "" },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 30_000,
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect(await child.exited).toBe(2);
  expect(stdout).toBe("");
  expect(stderr).toMatch(/^openshell-e2e: parity needs a real gateway beside the fake\. Set OPENSHELL_.*\n$/);
}, 60_000);
