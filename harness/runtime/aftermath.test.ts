// SPDX-License-Identifier: Apache-2.0

/** What a process has started is cleared away before it ends, where its end is the end of everybody else. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../base/root.ts";
import { eventually } from "../base/waiting.ts";

const folder = mkdtempSync(join(tmpdir(), "am-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

setDefaultTimeout(60_000);

/** In PID namespaces of its own, as a container has one; not every container may make another. */
const FIRST = ["unshare", "--pid", "--fork", "--mount-proc"];
const canUnshare = Boolean(Bun.which("unshare")) && Bun.spawnSync([...FIRST, "true"]).exitCode === 0;

test.skipIf(!canUnshare).each([
  ["the entry command", ["harness.ts", "test", "external-podman"]],
  ["the entry command, of gateways alone", ["harness.ts", "test", "gateway-adapter"]],
  ["bun test", ["test", "scenarios/external-podman"]],
  ["check", ["harness.ts", "check"]],
  ["a verb that handles no signal", ["harness.ts", "mutants"]],
])("%s leaves nothing when it is the first process of a container, and is terminated", async (_, args) => {
  const runs = mkdtempSync(join(folder, "r"));
  const child = Bun.spawn([...FIRST, process.execPath, ...args], {
    cwd: ROOT,
    env: {
      PATH: process.env.PATH!,
      HOME: process.env.HOME!,
      OPENSHELL_E2E_RUN_DIR: runs,
      OPENSHELL_E2E_REPORTS: join(runs, "reports"),
    },
    stdout: "ignore",
    stderr: "ignore",
    timeout: 40_000,
    killSignal: "SIGKILL",
  });
  const runsLeft = () => readdirSync(runs).filter((name) => name !== "reports");
  const isAtWork = () => {
    const [run = ""] = runsLeft();
    const files = readdirSync(join(runs, run));
    // A first gateway, or driver, is there.
    if (!files.includes("1")) throw new Error(files.join(" "));
  };
  await eventually(isAtWork, { what: "the run is under way", deadlineMs: 20_000 });
  const [first = 0] = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
  process.kill(Number(first), "SIGTERM");
  expect(await child.exited).toBe(143);
  expect(runsLeft()).toEqual([]);
});
