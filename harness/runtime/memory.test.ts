// SPDX-License-Identifier: Apache-2.0

/** No process of ours takes a machine down: one that runs away is ended, its run with it, and the user is told why. */
import { ROOT } from "../base/root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { processTable } from "./processes.ts";

const folder = mkdtempSync(join(tmpdir(), "my-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const env = {
  PATH: process.env.PATH!,
  HOME: process.env.HOME!,
  OPENSHELL_E2E_RUN_DIR: folder,
  OPENSHELL_E2E_REPORTS: join(folder, "reports"),
  BUN_OPTIONS: `--preload=${join(import.meta.dir, "runaway.fixture.ts")}`,
};

setDefaultTimeout(60_000);

/** What ends within these, by the bound: the run is long enough for anybody to run away in. */
const LONG_RUN: Record<string, string[]> = {
  "external-podman": ["test", "external-podman"],
  "gateway-adapter": ["test", "gateway-adapter"],
  soak: ["soak", "--minutes", "1", "--sandboxes", "100000"],
};

const exceeded = "used \\d+ MiB of memory, more than its bound of \\d+ MiB";

test.each([
  ["keeper", "external-podman", `the keeper \\(process \\d+\\) ${exceeded}`],
  ["keeper", "soak", `the keeper \\(process \\d+\\) ${exceeded}`],
  ["stuck", "soak", "the keeper \\(process \\d+\\) did nothing for 3 s: its event loop is stuck"],
  ["test", "external-podman", `the test process \\(process \\d+\\) ${exceeded}`],
  ["command", "soak", `bun harness.ts soak \\(process \\d+\\) ${exceeded}`],
  ["fake", "external-podman", `the fake \\w+ \\(process \\d+\\) ${exceeded}`],
  ["fake", "gateway-adapter", `the fake gateway \\(process \\d+\\) ${exceeded}`],
])(
  "what runs away (%s, in %s) is ended with its run, which says so and leaves nothing",
  async (who, run, why) => {
    const began = performance.now();
    const child = Bun.spawn([process.execPath, "harness.ts", ...LONG_RUN[run]!], {
      cwd: ROOT,
      env: { ...env, RUNAWAY: who },
      stdout: "ignore",
      stderr: "pipe",
      // Should nobody end it, this does.
      timeout: 20_000,
      killSignal: "SIGKILL",
    });
    const said = await child.stderr.text();
    const lines = said.split("\n").filter((line) => line.startsWith("openshell-e2e: "));
    expect(lines).toEqual([expect.stringMatching(new RegExp(`^openshell-e2e: ${why}`))]);
    expect(await child.exited).toBe(2);
    expect(performance.now() - began).toBeLessThan(15_000);
    const nothingLeft = () => {
      const runs = readdirSync(folder).filter((name) => name !== "reports");
      // Whatever became of the folder: a process of a run has a place in it.
      const isOurs = ({ words, environment }: { words: string[]; environment: string[] }) =>
        [...words, ...environment].some(
          (word) => word.includes(`${folder}/`) && !word.startsWith("OPENSHELL_E2E_REPORTS="),
        );
      const processes = processTable()
        .filter(isOurs)
        .map(({ command }) => command);
      expect([...runs, ...processes]).toEqual([]);
    };
    await eventually(nothingLeft, { what: "nothing left of the run", deadlineMs: 10_000 });
  },
);
