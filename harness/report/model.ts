// SPDX-License-Identifier: Apache-2.0

/**
 * What a run came to: `results.json`, from which every report is made, also afterwards. results.schema.json says the
 * same to other programs. All times are in milliseconds, `at` since the run's start; secrets are redacted before they
 * get here.
 */

/**
 * pass, fail, skip (with a reason), known (fails, as known-failing.toml says), older (the driver keeps an older
 * contract), error (the harness or the machine failed, not the subject), cut (the run ended in the middle of it).
 */
export type Verdict = "pass" | "fail" | "skip" | "known" | "older" | "error" | "cut";
export const VERDICTS: readonly Verdict[] = ["pass", "fail", "known", "older", "skip", "error", "cut"];

/** A whole run. */
export interface Results {
  /** Of this format. */
  schema: 1;
  run: {
    id: string;
    /** ISO 8601. */
    startedAt: string;
    ms: number;
    /** As it was typed, without secrets: "bun harness.ts test external-podman". */
    command: string;
    /** The run was killed: what is here is what was known by then. */
    cutOff: boolean;
    /** How many scenarios `-t` left out; they are not among `scenarios`. Unset for none. */
    unselected?: number;
  };
  stack: Record<"gateway" | "driver" | "engine" | "supervisor", Standing>;
  machine: { os: string; arch: string; cpus: number; memoryMb: number; bun: string };
  /** The line of the contract, such as "0.0". */
  contract: string;
  counts: Record<Verdict, number>;
  /** What the run left behind, and was removed by force; a line each. */
  leftovers: string[];
  scenarios: ScenarioResult[];
  /** The programs that ran. */
  processes: ProcessSpan[];
  /** Every call that crossed a tap. */
  calls: CallRecord[];
  /** What became of each sandbox. */
  phases: PhaseRecord[];
  /** Faults and restarts. */
  marks: Mark[];
}

/** What stood in one of the four places. */
export interface Standing {
  real: boolean;
  /** As the first line of the run says it: "openshell-gateway 0.0.112", "fake". */
  label: string;
  /** The base name of its program; empty for images. */
  program: string;
  /** Of the supervisor its image, of the engine that of its sandboxes. */
  image?: { reference: string; digest: string };
}

/** One scenario, or one check of the driver contract. */
export interface ScenarioResult {
  /** "external-podman", "driver-contract", "gateway-adapter". */
  suite: string;
  /** "LC-03", "DC-45"; unique in a run. */
  id: string;
  title: string;
  /** Relative to the repository. */
  file: string;
  line: number;
  verdict: Verdict;
  /** Why, unless it passed: the whole message. */
  reason: string;
  at: number;
  ms: number;
  /** After how long its body failed; what came after that is cleaning up. */
  failedMs?: number;
  /** How often it ran and how often it failed, where that was more than once (`bun test --rerun-each`). */
  times?: { run: number; failed: number };
  /** Where the requirement comes from, and what users meet when it is broken; empty where the title says it all. */
  source: string;
  harm: string;
  /** Of the finding, where it could be told apart. */
  expected: string;
  seen: string;
  /** The number of the stack on which it ran; 0 for none. */
  stack: number;
  /** The ids of the sandboxes that it made, or shared with others. */
  sandboxes: string[];
  /** Lines of the logs within its time, only for what did not pass. */
  logs: { gateway: string[]; driver: string[] };
  /** Its containers as the engine has them, only for what did not pass. */
  engine: string[];
  /** What its driver asked the engine for, where a proxy stood between the two, only for what did not pass. */
  engineCalls: string[];
}

/** A program from its start to its end. */
export interface ProcessSpan {
  /** "gateway", "driver", "engine", "keeper", "test". */
  name: string;
  /** 0 for those that all stacks share. */
  stack: number;
  pid: number;
  at: number;
  /** Until it answered; unset if it never did. */
  readyMs?: number;
  /** Unset while it runs. */
  ms?: number;
  /** "exit code 0", "signal SIGKILL". */
  ending?: string;
  /** Whether the harness ended it; else it ended by itself. */
  told?: boolean;
}

/** One call between gateway and driver. */
export interface CallRecord {
  stack: number;
  seq: number;
  method: string;
  at: number;
  /** Unset while it was open. */
  ms?: number;
  /** The status' name; empty while it was open. */
  status: string;
  details: string;
  /** The id of the sandbox that it was about; empty if it was about none. */
  sandbox: string;
  /** Redacted, without unset fields. */
  request: unknown;
  responses: unknown[];
  /** What a stream sent: the last few of each sandbox. Unset for other calls; older results have them as responses. */
  events?: EventRecord[];
}

/** What a stream sent about a sandbox. */
export interface EventRecord {
  at: number;
  /** Its id; empty if the event names none. */
  sandbox: string;
  event: unknown;
}

/** A sandbox came into a phase. */
export interface PhaseRecord {
  stack: number;
  sandbox: string;
  name: string;
  phase: string;
  at: number;
}

/** Something that was done to a stack. */
export interface Mark {
  stack: number;
  at: number;
  /** "kill driver", "fault StopSandbox: delay 3s". */
  what: string;
  /** It was in force before the run and all through it: a fault of `bun harness.ts up`. */
  standing?: true;
}

/** Counts by verdict. */
export function count(scenarios: Pick<ScenarioResult, "verdict">[]): Record<Verdict, number> {
  const counts = Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0])) as Record<Verdict, number>;
  for (const { verdict } of scenarios) counts[verdict]++;
  return counts;
}

/** Whether a verdict is bad news. */
export const isRed = (verdict: Verdict): boolean => ["fail", "error", "cut"].includes(verdict);
