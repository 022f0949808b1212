// SPDX-License-Identifier: Apache-2.0

/** What came of a check, in the light of what is known of the driver. */
import { findKnown, type Known } from "./known-failing.ts";
import type { Outcome, Verdict } from "./runner.ts";
import type { Identity } from "./versions.ts";

/** An outcome with its final verdict. */
export type Judged = Omit<Outcome, "verdict"> & { verdict: Verdict | "known" };

/** A failure that is listed is known; a listed check that passes, and anything left behind, is a failure. */
export function judge(outcome: Outcome, known: Known[], driver: Identity): Judged {
  const entry = findKnown(known, outcome.check.id, driver);
  const failed = outcome.verdict === "fail" || (outcome.verdict === "pass" && outcome.left.length > 0);
  if (failed && entry) {
    const why = entry.issue ? `${entry.why}, ${entry.issue}` : entry.why;
    return { ...outcome, verdict: "known", reason: `${why}\n${outcome.reason}` };
  }
  if (failed) return { ...outcome, verdict: "fail" };
  if (entry && outcome.verdict === "pass") {
    const reason = `it is listed as known to fail (${entry.why}), and passes: take it out of scenarios/known-failing.toml`;
    return { ...outcome, verdict: "fail", reason };
  }
  return outcome;
}
