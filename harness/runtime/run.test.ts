// SPDX-License-Identifier: Apache-2.0

/** Where a run is, and that what belongs to it is found. */
import { ROOT } from "../base/root.ts";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { processesOf } from "./processes.ts";
import { Run, usualPlace } from "./run.ts";
import { RUN_MARK } from "./marks.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

describe("a run is, unless somebody names a place,", () => {
  const kept = process.env.TMPDIR;
  const restore = () => (kept === undefined ? delete process.env.TMPDIR : (process.env.TMPDIR = kept));
  beforeEach(() => delete process.env.TMPDIR);
  afterEach(restore);

  const RAM = "tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0";
  const isRoomy = (): boolean => {
    const { blocks, bsize } = statfsSync("/dev/shm");
    return blocks * bsize >= 2 ** 30;
  };

  test.skipIf(!existsSync("/dev/shm") || !isRoomy())("in memory", () => {
    expect(usualPlace(`proc /proc proc rw 0 0\n${RAM}\n`)).toBe("/dev/shm");
  });

  test.each([
    ["no table", ""],
    ["no RAM disk", "proc /proc proc rw 0 0\n"],
    ["a disk", "/dev/vda /dev/shm ext4 rw 0 0\n"],
  ])("in the temporary folder with %s", (_, mounts) => {
    expect(usualPlace(mounts)).toBe(tmpdir());
  });

  test("in the temporary folder that the environment names", () => {
    process.env.TMPDIR = "/var/tmp";
    expect(usualPlace(RAM)).toBe("/var/tmp");
  });
});

test("a process is told on one line, however many its script has", async () => {
  const root = mkdtempSync(join(tmpdir(), "rn-"));
  const folder = join(root, "0badcafe");
  mkdirSync(folder);
  const script = "trap : HUP\nread -r line";
  const env = { [RUN_MARK]: "0badcafe", PATH: process.env.PATH };
  const child = Bun.spawn(["sh", "-c", script], { env, stdin: "pipe" });
  try {
    const found = () => expect(processesOf(Run.open(folder)).map(({ command }) => command)).toEqual([told]);
    const told = "sh -c trap : HUP read -r line";
    await eventually(found, { what: "the process is found" });
  } finally {
    child.kill();
    await child.exited;
    rmSync(root, { recursive: true });
  }
});

test("a folder for runs that may not be read is refused in one line", async () => {
  const root = mkdtempSync(join(tmpdir(), "closed-"));
  chmodSync(root, 0);
  // Root may read everything.
  const code = `
    const { readSettings } = await import("./harness/base/settings.ts");
    const { Run } = await import("./harness/runtime/run.ts");
    if (process.getuid() === 0) process.setuid(65534);
    const { settings } = readSettings([], { OPENSHELL_E2E_RUN_DIR: process.argv[1] });
    for (const work of [Run.all, Run.create])
      try {
        work(settings);
      } catch ({ name, message }) {
        console.log(name, message);
      }`;
  const argv = [process.execPath, "-e", code, root];
  const child = Bun.spawn(argv, { cwd: ROOT, stdout: "pipe", stderr: "inherit" });
  const said = await child.stdout.text();
  rmSync(root, { recursive: true });
  const line = `HarnessError The folder for runs cannot be used: EACCES: permission denied, access '${root}'. Set OPENSHELL_E2E_RUN_DIR to a folder of your own\n`;
  expect(said).toBe(line + line);
});

test.each(["with -- /bin/true", "check --only DC-12", "up"])(
  "without a shell in PATH `%s` says so in one line",
  async (command) => {
    const argv = command.split(" ");
    const runs = mkdtempSync(join(tmpdir(), "shell-"));
    const child = Bun.spawn([process.execPath, "harness.ts", ...argv], {
      cwd: ROOT,
      env: { PATH: runs, HOME: runs, OPENSHELL_E2E_RUN_DIR: join(runs, "r"), OPENSHELL_E2E_REPORTS: runs },
      stdout: "ignore",
      stderr: "pipe",
    });
    expect(await child.stderr.text()).toBe(
      `openshell-e2e: There is no sh in PATH, with which a run is started: ${runs}\n`,
    );
    expect(await child.exited).toBe(2);
    rmSync(runs, { recursive: true });
  },
);
