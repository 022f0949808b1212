// SPDX-License-Identifier: Apache-2.0

/** What came of a check, in the light of what is known of the driver. */
import { findKnown, type Known, outdated, whyOf } from "../known-failing.ts";
import type { Outcome, Verdict } from "./runner.ts";
import type { Identity } from "./versions.ts";

/** An outcome with its final verdict. */
export type Judged = Omit<Outcome, "verdict"> & { verdict: Verdict | "known" };

/** A failure that is listed is known; a listed check that passes, and anything left behind, is a failure. */
export function judge(outcome: Outcome, known: Known[], driver: Identity): Judged {
  const entry = findKnown(known, outcome.check.id, { driver });
  const failed = outcome.verdict === "fail" || (outcome.verdict === "pass" && outcome.left.length > 0);
  if (failed && entry) {
    return { ...outcome, verdict: "known", reason: `${whyOf(entry)}\n${outcome.reason}` };
  }
  if (failed) return { ...outcome, verdict: "fail" };
  if (entry && outcome.verdict === "pass") return { ...outcome, verdict: "fail", reason: outdated(entry) };
  return outcome;
}
