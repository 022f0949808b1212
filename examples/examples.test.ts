// SPDX-License-Identifier: Apache-2.0

/** What an author of a driver may start from does what its header says. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const DRIVER = `${process.execPath} ${join(import.meta.dir, "process-driver.ts")} {socket} {endpoint} {supervisor} {state}`;

test.each([
  ["a driver whose sandboxes are processes", DRIVER],
  ["one that a shell stays in front of, as npx does", `sh -c '"$@" & wait $!' sh ${DRIVER}`],
])(
  "%s brings them up, and leaves nothing",
  async (_, driver) => {
    const folder = mkdtempSync(join(tmpdir(), "ex-"));
    const child = Bun.spawn(
      [process.execPath, "harness.ts", "test", "external-podman", "--driver-cmd", driver, "-t", "SM-|LC-01"],
      {
        cwd: join(import.meta.dir, ".."),
        env: {
          PATH: process.env.PATH,
          HOME: homedir(),
          OPENSHELL_E2E_RUN_DIR: folder,
          OPENSHELL_E2E_REPORTS: join(folder, "reports"),
        },
        stdout: "pipe",
        stderr: "pipe",
        timeout: 60_000,
      },
    );
    const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    rmSync(folder, { recursive: true });
    expect(out, err).toContain("external-podman: 5 passed, 0 failed");
    expect(code).toBe(0);
  },
  70_000,
);
