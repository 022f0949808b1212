// SPDX-License-Identifier: Apache-2.0

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "./waiting.ts";
import { isAlive } from "./system.ts";
import { shortCommand } from "./short-command.ts";

const folder = mkdtempSync(join(tmpdir(), "sc-"));
const pidFile = join(folder, "pid");
afterAll(() => rmSync(folder, { recursive: true }));

const sh = (script: string, bounds = {}) => shortCommand(["sh", "-c", script, "sh", pidFile], bounds);

/** The pid that the last script wrote down of its background process. */
const background = () => Number(readFileSync(pidFile, "utf8"));

/** Waits until a process is gone, or only waits to be collected by whoever is its parent by now. */
const gone = (pid: number) =>
  eventually(
    () => {
      const stat = `/proc/${pid}/stat`;
      if (isAlive(pid) && !(existsSync(stat) && readFileSync(stat, "utf8").includes(") Z ")))
        throw new Error(`${pid} is there`);
    },
    { what: "the end of the background process", deadlineMs: 3_000 },
  );

test("a command's outputs and its end are told", async () => {
  const { stdout, stderr, exitCode, ending } = await sh("echo out; echo err >&2; exit 3");
  expect([stdout.toString(), stderr.toString(), exitCode, ending]).toEqual([
    "out\n",
    "err\n",
    3,
    "exit code 3",
  ]);
  expect((await sh("kill -9 $$")).ending).toBe("signal SIGKILL");
});

test("a large output is whole", async () => {
  const { stdout } = await sh("head -c 3000000 /dev/zero");
  expect(stdout.length).toBe(3_000_000);
});

test("a background process that holds the output open is ended, not waited for", async () => {
  const began = performance.now();
  const { stdout, exitCode } = await sh('sleep 100 & echo $! >"$1"; echo said');
  expect(performance.now() - began).toBeLessThan(3_000);
  expect([stdout.toString(), exitCode]).toEqual(["said\n", 0]);
  await gone(background());
});

test.skipIf(!Bun.which("setsid"))(
  "one in a session of its own is left alone, and not waited for",
  async () => {
    rmSync(pidFile, { force: true });
    const began = performance.now();
    const leaves = `setsid sh -c 'echo $$ >"$1"; exec sleep 100' sh "$1" &`;
    const { stdout } = await sh(`${leaves} until [ -s "$1" ]; do sleep 0.01; done; echo said`);
    expect(performance.now() - began).toBeLessThan(3_000);
    expect(stdout.toString()).toBe("said\n");
    process.kill(background(), "SIGKILL");
  },
);

test("one that does not end is ended at its deadline, with its group, and says what it had said", async () => {
  const running = sh('sleep 100 & echo $! >"$1"; echo "waiting for a lock" >&2; wait', { deadlineMs: 200 });
  await expect(running).rejects.toThrow(/^it did not end within 200 ms: waiting for a lock$/);
  await gone(background());
});

test("one that prints without end is ended", async () => {
  await expect(sh("yes", { mostBytes: 100_000 })).rejects.toThrow("it printed more than 100000 bytes");
});

test("what runs when the harness ends, ends with it", async () => {
  const module = join(import.meta.dir, "short-command.ts");
  const script = `import { shortCommand } from ${JSON.stringify(module)};
    void shortCommand(["sh", "-c", 'echo $$ >"$0"; sleep 100', ${JSON.stringify(pidFile)}]);
    setInterval(() => { if (require("fs").existsSync(${JSON.stringify(pidFile)})) process.exit(0) }, 5);`;
  rmSync(pidFile, { force: true });
  expect((await shortCommand([process.execPath, "-e", script])).exitCode).toBe(0);
  await eventually(() => expect(background()).toBeGreaterThan(0), { what: "the pid" });
  await gone(background());
});
