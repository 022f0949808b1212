// SPDX-License-Identifier: Apache-2.0

/** Loaded by `bun test` before all test files: ends the run after the last of them, and explains what failed. */
import { afterAll, setDefaultTimeout } from "bun:test";
import { type Ended, endRun } from "../harness/shared-run.ts";
import { EXIT, fail } from "../harness/base/errors.ts";
import { readSettings } from "../harness/base/settings.ts";
import { shownPath, inColour, shellQuoted, widthOf } from "../harness/base/text.ts";
import { exemptLoopback } from "../harness/base/environment.ts";
import { endAsFirstProcess, unlessEnding } from "../harness/runtime/aftermath.ts";
import { watchMemory } from "../harness/runtime/memory.ts";
import { endWithStarter } from "../harness/base/parent.ts";
import { openReports } from "../harness/runtime/reports.ts";
import type { Results } from "../harness/report/model.ts";
import { readable } from "../harness/base/readable.ts";
import { explainAll, leftOnTerminal } from "../harness/report/terminal.ts";
import { notePreload } from "../harness/preloaded.ts";

notePreload();

endWithStarter();

watchMemory({ as: "test process" });

// Above every deadline of ours: when a test times out, bun kills all children of the test process.
setDefaultTimeout(180_000);

exemptLoopback(process.env);

try {
  const { settings } = readSettings();
  openReports(settings);
  endAsFirstProcess(settings);
} catch (error) {
  fail(error);
}

let isOver = false;

afterAll(async () => {
  // With --rerun-each bun calls it once for each run of the last file.
  if (isOver) return;
  isOver = true;
  await unlessEnding();
  // Whatever the end meets, what failed before is explained.
  // Nobody knows what is left when the end fails; a guard sees to it.
  const ended = await endRun().catch((error: Error): Ended => ({
    left: [],
    problem: readable(error.message),
  }));
  const { left, results, problem } = ended;
  if (results) explain(results, problem);
  if (problem) {
    console.error(`openshell-e2e: ${problem}`);
    process.exitCode = EXIT.error;
  }
  if (left.length === 0) return;
  console.error(leftOnTerminal(left));
  process.exitCode = EXIT.leftovers;
});

/** Says of what failed, in a screen each, who broke which rule. */
function explain(results: Results, problem?: string): void {
  const text = explainAll(results, inColour(process.stderr), widthOf(process.stderr));
  if (text) console.error(`\n${text}`);
  const { reports } = readSettings().settings;
  if (text && !problem)
    console.error(
      `\nAll of it, with a timeline: bun harness.ts report ${shellQuoted(shownPath(reports))} --format html`,
    );
}
