// SPDX-License-Identifier: Apache-2.0

/** `doctor` finds missing what a run would miss. (What it says of dead runs, `sweep.test.ts` holds against a sweep.) */
import { ROOT } from "../base/root.ts";
import { expect, setDefaultTimeout, test } from "bun:test";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

async function doctor(driverCmd: string) {
  const child = Bun.spawn([process.execPath, "harness.ts", "doctor"], {
    cwd: ROOT,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, OPENSHELL_DRIVER_CMD: driverCmd },
    stdout: "pipe",
    stderr: "pipe",
  });
  const output = await child.stdout.text();
  return { code: await child.exited, output };
}

test.each(["./x", "/no/such/driver", "no-such-driver"])(
  "the driver %s, which is not there, is missing",
  async (x) => {
    const { code, output } = await doctor(`${x} {socket}`);
    expect(output).toMatch(new RegExp(`^missing driver: no such program: \\S*${x.replace("./", "/")}$`, "m"));
    expect(code).toBe(2);
  },
);

test("a driver that is there is told with its command, and whose engine it uses", async () => {
  const { output } = await doctor(`${process.execPath} my-driver.ts {socket}`);
  expect(output).toMatch(/^ok +engine: the driver's own$/m);
  expect(output).toMatch(/^ok +driver: \S+ \(custom\) \(\S+ my-driver.ts \{socket\}\)$/m);
});

test("a TMPDIR that does not do for runs is named", () => {
  const { stdout } = Bun.spawnSync([process.execPath, "harness.ts", "doctor"], {
    cwd: ROOT,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: "/no/such/folder" },
  });
  expect(stdout.toString()).toMatch(/^note {4}runs are not where TMPDIR says: ENOENT: .*\/no\/such\/folder/m);
});
