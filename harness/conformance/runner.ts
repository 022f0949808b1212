// SPDX-License-Identifier: Apache-2.0

/** Runs checks against a driver, and says what came of each. */
import { eventually, named, unless, within } from "../base/waiting.ts";
import { socketProblem } from "../base/socket.ts";
import { indent } from "../base/text.ts";
import type { Check } from "./check.ts";
import { NotApplicable, Refused, Violation } from "./finding.ts";
import { Driver } from "./driver.ts";
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
  /** The calls that it made, a line each; none of a check that passed and left nothing. */
  evidence: string[];
  /** What it left in the backend, or could not undo, a line each: a finding beside the verdict. */
  left: string[];
  ms: number;
  /** Whether a sandbox that was to come up did; unset if none was to. */
  cameUp?: boolean;
  /** What became of the driver meanwhile, if it is not there any more. */
  gone?: string;
  /** It was not run, because the driver was gone already. */
  notRun?: true;
}

/** How to run. */
export interface Running {
  parallel: number;
  onBegin?: (check: Check) => void;
  onOutcome?: (outcome: Outcome) => void;
  /** Says what became of the driver, if it is not there any more; asked after every check that did not pass. */
  gone?: () => Promise<string | undefined>;
  /** The calls that it does not implement, since its contract is older. */
  older?: ReadonlySet<string>;
  /** Once it is aborted no check is begun, and those under way are ended soon. */
  stop?: AbortSignal;
}

/** How long a check may go on once all is to end, in milliseconds: most end by themselves meanwhile. */
const GRACE_MS = 2_000;

/** How long a check may go on undoing what it did once all is to end, in milliseconds: its driver may be stuck. */
export const UNDO = { ms: 10_000 };

/** After so many checks that waited in vain the rest would, too: a verdict is due in a minute. */
const IN_VAIN = { oneByOne: 4, together: 8 };

/**
 * Runs the checks, those that can side by side. Resolves with the outcomes in the order of the checks. Once the driver
 * is gone, answers nothing, or brings no sandbox up, the rest is not run. Checks that `stop` kept from beginning have none.
 */
export async function run(checks: Check[], subject: Subject, running: Running): Promise<Outcome[]> {
  const outcomes = new Map<Check, Outcome>();
  const looking = { gone: () => whatBecameOf(subject), ...running };
  const enough = running.parallel > 1 ? IN_VAIN.together : IN_VAIN.oneByOne;
  let lost: string | undefined;
  let inVain = 0;
  let neverUp = 0;
  const judge = async (check: Check) => {
    if (!lost) running.onBegin?.(check);
    const outcome = lost ? notRun(check, lost) : await runOne(check, subject, looking);
    if (outcome.gone) lost ??= `the driver is gone since ${check.id}`;
    const late = outcome.evidence.some((call) => call.includes("DEADLINE_EXCEEDED"));
    if (outcome.verdict !== "skip") inVain = late ? inVain + 1 : 0;
    if (inVain === enough)
      lost ??= `${enough} checks in a row waited for an answer in vain, the last was ${check.id}`;
    // Once one came up, those that do not are findings.
    if (outcome.cameUp) neverUp = -Infinity;
    if (outcome.cameUp === false && ++neverUp === enough)
      lost ??= `no sandbox came up in ${enough} checks, the last was ${check.id}: see how it failed`;
    outcomes.set(check, outcome);
    running.onOutcome?.(outcome);
  };
  const together = checks.filter(({ alone }) => !alone);
  const next = together.values();
  const stopped = () => running.stop?.aborted;
  const worker = async () => {
    for (const check of next) if (!stopped()) await judge(check);
  };
  await Promise.all(Array.from({ length: running.parallel }, worker));
  for (const check of checks) if (check.alone && !stopped()) await judge(check);
  return checks.flatMap((check) => outcomes.get(check) ?? []);
}

/** Runs one check, and undoes what it did. */
export async function runOne(
  check: Check,
  subject: Subject,
  { gone, older, stop }: Partial<Running> = {},
): Promise<Outcome> {
  const trial = new Trial(subject);
  const began = performance.now();
  let verdict: Verdict = "pass";
  let reason = "";
  try {
    const late = () => new Violation(`an end of the check within ${check.deadlineMs} ms`, "it waits");
    await within(check.deadlineMs, "The check", unless(stop, check.body(trial), GRACE_MS), late);
  } catch (error) {
    [verdict, reason] = judgement(error, older);
  }
  const undoing = within(check.deadlineMs, "Undoing the check", trial.end());
  const waiting = named(stop, `${check.id} to be undone`, unless(stop, undoing, UNDO.ms));
  const left = await waiting.catch((error: Error) => {
    // Nobody knows what the driver would have left: that is no finding.
    if (!stop?.aborted || error !== stop.reason) return [error.message];
    [verdict, reason] = ["error", `${error.message} before it was undone${reason && `\n${reason}`}`];
    return [];
  });
  const suspicious = verdict === "fail" || verdict === "error" || left.length > 0;
  const end = suspicious ? await gone?.() : undefined;
  // That a driver which is gone could not be told to delete is no finding of its own.
  const remains = end ? left.filter((line) => !/^(UNAVAILABLE|DEADLINE_EXCEEDED): /.test(line)) : left;
  if (end) [verdict, reason] = ["error", `the driver is gone: ${end}${reason && `\n${reason}`}`];
  const blameless = verdict === "pass" && left.length === 0;
  const asked = blameless ? [] : trial.asked;
  const evidence = asked.map(({ at, text }) => `${(at - began).toFixed(0).padStart(6)} ms ${text()}`);
  const { cameUp } = trial;
  return {
    check,
    verdict,
    reason,
    evidence,
    left: remains,
    ms: performance.now() - began,
    cameUp,
    gone: end,
  };
}

/** The outcome of a check that nobody can ask the driver any more. */
export const notRun = (check: Check, why: string): Outcome => ({
  check,
  verdict: "error",
  reason: `not run: ${why}`,
  evidence: [],
  left: [],
  ms: 0,
  notRun: true,
});

/** How long a driver may be silent before it counts as gone, in milliseconds. */
const SILENT_MS = 10_000;

/** How the driver ended, with its last words, or that it is silent; undefined as long as it answers something. */
async function whatBecameOf({ owned, own }: Subject): Promise<string | undefined> {
  const ended = async () => {
    if (!owned) return undefined;
    const { ended, tail } = await owned.keeper.call("driverState", owned.stack.id, 0);
    return ended && `it ended with ${ended}, its log with\n${indent(tail || "(nothing)", "  | ")}`;
  };
  const driver = new Driver(own.socket);
  const answers = () =>
    driver.getCapabilities(SILENT_MS / 3).catch((error: unknown) => {
      if (!(error instanceof Refused) || ["UNAVAILABLE", "DEADLINE_EXCEEDED"].includes(error.code))
        throw error;
    });
  try {
    await eventually(answers, { what: "an answer to GetCapabilities", deadlineMs: SILENT_MS, failed: ended });
  } catch (error) {
    const end = await ended();
    if (end) return end;
    const instead = socketProblem(own.socket);
    return instead ? `what is at ${own.socket} now: ${instead}` : (error as Error).message;
  } finally {
    driver.close();
  }
}

/** A refusal that a check did not expect is the driver's fault, and so is one that comes too late. */
function judgement(error: unknown, older: ReadonlySet<string> = new Set()): [Verdict, string] {
  if (error instanceof NotApplicable) return ["skip", error.message];
  const refused = error instanceof Violation ? error.refused : error;
  if (refused instanceof Refused && refused.code === "UNIMPLEMENTED" && older.has(refused.method))
    return ["older", `the driver has no ${refused.method}: an older contract`];
  if (error instanceof Violation) return ["fail", error.message];
  if (error instanceof Refused)
    return ["fail", `expected ${error.method} to be accepted\n     saw ${error.message}`];
  return ["error", error instanceof Error ? error.message : String(error)];
}
