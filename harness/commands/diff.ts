// SPDX-License-Identifier: Apache-2.0

/**
 * `diff A B`: what changed from one run to another, each a results.json or the folder that holds it. Exit code 1 if
 * something got worse, so that a script can try a new gateway with an old driver.
 */
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { describeDiff, diff } from "../report/diff.ts";
import { readResults } from "../report/read.ts";

export const command: Command = async (_, args) => {
  const [before, after, more] = args;
  if (!before || !after || more !== undefined)
    throw new HarnessError(
      `diff: two runs were expected, and ${args.length} given: bun harness.ts diff A/results.json B/results.json`,
    );
  const [a, b] = [readResults(before), readResults(after)];
  const found = diff(a, b);
  console.log(describeDiff(found, a, b));
  return found.worse ? EXIT.failed : EXIT.ok;
};
