// SPDX-License-Identifier: Apache-2.0

/** The checks of the driver contract as tests: of the driver that the settings name, or the fake. */
import { expect, test } from "bun:test";
import { loadChecks } from "../../harness/conformance/load.ts";
import { judge, recordBegun, recordOutcome } from "../../harness/conformance/judge.ts";
import { readKnown } from "../../harness/report/known-failing.ts";
import { explanation } from "../../harness/conformance/report.ts";
import { runOne } from "../../harness/conformance/runner.ts";
import { startSubject } from "../../harness/conformance/subject.ts";
import { identify } from "../../harness/conformance/versions.ts";
import { inTurn, register, registerAlone } from "../../harness/scenario.ts";
import { readSettings } from "../../harness/base/settings.ts";
import { sharedKeeper } from "../../harness/shared-run.ts";

const checks = await loadChecks();
const known = readKnown("check", new Set(checks.map(({ id }) => id)));

/** The driver, started for the first check; the run's end stops it. */
let started: ReturnType<typeof start> | undefined;
async function start() {
  const { keeper } = await sharedKeeper();
  const subject = await startSubject(keeper, readSettings().settings);
  return { subject, identity: await identify(subject.socket) };
}

for (const check of checks) {
  const title = `${check.id} ${check.level} ${check.rule}`;
  const prove = async () => {
    const { subject, identity } = await (started ??= start());
    recordBegun(check);
    const outcome = judge(await runOne(check, subject, { older: identity.missing }), known, identity);
    recordOutcome(outcome);
    // bun test has no word for it once a test has begun.
    if (["skip", "older", "known"].includes(outcome.verdict))
      console.log(`(${outcome.verdict}) ${check.id}: ${outcome.reason}`);
    else expect(outcome.verdict, explanation(outcome)).toBe("pass");
  };
  if (check.alone) registerAlone(title, () => test(title, prove));
  else register(title, () => test.concurrent(title, () => inTurn(prove)));
}
