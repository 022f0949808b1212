// SPDX-License-Identifier: Apache-2.0

/** Runs checks against a driver, and says what came of each. */
import { within } from "../harness.ts";
import { type Check, NotApplicable, Refused, Violation } from "./check.ts";
import { type Subject, Trial } from "./trial.ts";

/**
 * pass: the driver keeps the rule. fail: it breaks it. skip: the rule cannot be asked of it. older: it implements an
 * older contract, that had no such rule. error: the harness or the machine failed, or the driver is gone.
 */
export type Verdict = "pass" | "fail" | "skip" | "older" | "error";

/** What came of a check. */
export interface Outcome {
  check: Check;
  verdict: Verdict;
  /** Why, unless it passed; several lines. */
  reason: string;
  /** The calls that it made, a line each. */
  evidence: string[];
  /** What it left in the backend, or could not undo, a line each: a finding beside the verdict. */
  left: string[];
  ms: number;
}

/** How to run. `gone` says how the driver ended, if it did; `older` names what it does not implement. */
export interface Running {
  parallel: number;
  onOutcome?: (outcome: Outcome) => void;
  gone?: () => Promise<string | undefined>;
  older?: ReadonlySet<string>;
}

/** Runs the checks, those that can side by side. Resolves with the outcomes in the order of the checks. */
export async function run(checks: Check[], subject: Subject, running: Running): Promise<Outcome[]> {
  const outcomes = new Map<Check, Outcome>();
  const judge = async (check: Check) => {
    const outcome = await runOne(check, subject, running);
    outcomes.set(check, outcome);
    running.onOutcome?.(outcome);
  };
  const together = checks.filter(({ alone }) => !alone);
  const next = together.values();
  const worker = async () => {
    for (const check of next) await judge(check);
  };
  await Promise.all(Array.from({ length: running.parallel }, worker));
  for (const check of checks) if (check.alone) await judge(check);
  return checks.map((check) => outcomes.get(check)!);
}

/** Runs one check, and undoes what it did. */
export async function runOne(
  check: Check,
  subject: Subject,
  { gone, older }: Partial<Running> = {},
): Promise<Outcome> {
  const trial = new Trial(subject);
  const began = performance.now();
  let verdict: Verdict = "pass";
  let reason = "";
  try {
    await within(check.deadlineMs, "The check", check.body(trial));
  } catch (error) {
    [verdict, reason] = judgement(error, older);
  }
  const left = await within(check.deadlineMs, "Undoing the check", trial.end()).catch((error: Error) => [
    error.message,
  ]);
  if (verdict === "fail" || verdict === "error" || left.length > 0) {
    const end = await gone?.();
    if (end)
      [verdict, reason] = ["error", `the driver is gone, it ended with ${end}${reason && `\n${reason}`}`];
  }
  const evidence = trial.asked.map(({ at, text }) => `${at.toFixed(0).padStart(6)} ms ${text}`);
  return { check, verdict, reason, evidence, left, ms: performance.now() - began };
}

/** A refusal that a check did not expect is the driver's fault, and so is one that comes too late. */
function judgement(error: unknown, older: ReadonlySet<string> = new Set()): [Verdict, string] {
  if (error instanceof NotApplicable) return ["skip", error.message];
  if (error instanceof Violation) return ["fail", error.message];
  if (error instanceof Refused && error.code === "UNIMPLEMENTED" && older.has(error.method))
    return ["older", `the driver has no ${error.method}: an older contract`];
  if (error instanceof Refused)
    return ["fail", `expected ${error.method} to be accepted\n     saw ${error.message}`];
  return ["error", error instanceof Error ? error.message : String(error)];
}
