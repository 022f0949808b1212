// SPDX-License-Identifier: Apache-2.0

/** What belongs to a run is found. */
import { expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../harness.ts";
import { processesOf, Run, RUN_MARK } from "./run.ts";

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
