// SPDX-License-Identifier: Apache-2.0

/** What came of a check, in the light of what is known of the driver. */
import { findKnown, type Known, outdated, whyOf } from "../report/known-failing.ts";
import type { ScenarioResult } from "../report/model.ts";
import { now, record } from "../report/record.ts";
import { begun } from "../report/scenario.ts";
import type { Check } from "./check.ts";
import type { Outcome, Verdict } from "./runner.ts";
import type { Identity } from "./versions.ts";

/** An outcome with its final verdict. */
export type Judged = Omit<Outcome, "verdict"> & { verdict: Verdict | "known" };

function scenarioOf({ id, rule, file, line, source, harm }: Check): ScenarioResult {
  return begun({ suite: "driver-contract", id, title: `${id} ${rule}`, file, line, source, harm });
}

/** Records that a check begins, for the run's report and its progress. */
export const recordBegun = (check: Check): void => record({ kind: "running", scenario: scenarioOf(check) });

/** The calls of a check, oldest first, under a heading. */
const callsOf = (evidence: string[]): string[] =>
  evidence.length > 0 ? ["Calls:", ...evidence.slice(-RECORDED_CALLS).map((call) => `  ${call}`)] : [];
const RECORDED_CALLS = 40;

/** Records what came of a check, for the run's report. */
export function recordOutcome({ check, verdict, reason, left, evidence, ms }: Judged): void {
  const [expected = "", seen = ""] =
    reason.match(/^(?:expected|[ \t]{0,40}saw) .*$/gm)?.map((text) => text.trim()) ?? [];
  record({
    kind: "scenario",
    scenario: {
      ...scenarioOf(check),
      at: now() - ms,
      ms: Math.round(ms * 10) / 10,
      verdict,
      reason: [
        reason,
        ...left.map((one) => `left behind: ${one}`),
        ...(verdict === "pass" ? [] : callsOf(evidence)),
      ]
        .filter(Boolean)
        .join("\n"),
      expected: expected.replace(/^expected /, ""),
      seen: seen.replace(/^saw /, ""),
    },
  });
}

/** A failure that is listed is known; a listed check that passes, and anything left behind, is a failure. */
export function judge(outcome: Outcome, known: Known[], driver: Identity): Judged {
  const entry = findKnown(known, outcome.check.id, { driver });
  const failed = outcome.verdict === "fail" || (outcome.verdict === "pass" && outcome.left.length > 0);
  if (failed && entry) {
    return { ...outcome, verdict: "known", reason: `${whyOf(entry)}\n${outcome.reason}` };
  }
  const reason =
    outcome.reason || `the rule is kept, but something is left behind: ${outcome.left.join("; ")}`;
  if (failed) return { ...outcome, verdict: "fail", reason };
  const surprise = outcome.verdict === "pass" && entry && outdated(entry);
  if (surprise) return { ...outcome, verdict: "fail", reason: surprise };
  return outcome;
}
