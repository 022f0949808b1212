// SPDX-License-Identifier: Apache-2.0

/** Loaded by `bun test` before all test files: ends the run after the last of them. */
import { afterAll, setDefaultTimeout } from "bun:test";
import { EXIT, endRun } from "../harness.ts";

// Above every deadline of ours: when a test times out, bun kills all children of the test process.
setDefaultTimeout(180_000);

afterAll(async () => {
  const left = await endRun();
  if (left.length === 0) return;
  console.error(`Left behind by this run, and removed:\n  ${left.join("\n  ")}`);
  process.exitCode = EXIT.leftovers;
});
