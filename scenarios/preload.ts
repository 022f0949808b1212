// SPDX-License-Identifier: Apache-2.0

/** Loaded by `bun test` before all test files: ends the run after the last of them, and explains what failed. */
import { afterAll, setDefaultTimeout } from "bun:test";
import { EXIT, endRun, readSettings } from "../harness.ts";
import { isRed, type Results } from "../report/model.ts";
import { readResults } from "../report/read.ts";
import { explainOnTerminal } from "../report/terminal.ts";
import { inColour } from "../report/text.ts";

/** After so many one looks at the report. */
const EXPLAINED = 5;

// Above every deadline of ours: when a test times out, bun kills all children of the test process.
setDefaultTimeout(180_000);

const began = new Date().toISOString();

afterAll(async () => {
  const left = await endRun();
  explain();
  if (left.length === 0) return;
  console.error(`Left behind by this run, and removed:\n  ${left.join("\n  ")}`);
  process.exitCode = EXIT.leftovers;
});

/** Says of each scenario that failed, in a screen, who broke which rule. */
function explain(): void {
  const { reports } = readSettings().settings;
  let results: Results;
  try {
    results = readResults(reports);
  } catch {
    // Nothing was recorded: no scenario ran, or the disk is full.
    return;
  }
  if (results.run.startedAt < began) return;
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  const colour = inColour(process.stderr);
  for (const scenario of red.slice(0, EXPLAINED))
    console.error(`\n${explainOnTerminal(scenario, results.calls, { ...results, colour })}`);
  if (red.length === 0) return;
  const more = red.length > EXPLAINED ? `${red.length - EXPLAINED} more are not explained here. ` : "";
  console.error(`\n${more}All of it, with a timeline: bun harness.ts report ${reports} --format html`);
}
