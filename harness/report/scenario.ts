// SPDX-License-Identifier: Apache-2.0

/** A scenario as it is recorded: who it is, what came of it, and what a reader needs when it did not pass. */
import { ROOT } from "../base/root.ts";
import { basename, dirname, isAbsolute, relative } from "node:path";
import { readableError } from "../base/readable.ts";
import { diffOf } from "./explain.ts";
import type { ScenarioResult } from "./model.ts";
import { now, record } from "./record.ts";

/** Who a scenario is. */
export type About = Pick<ScenarioResult, "suite" | "id" | "title" | "file" | "line"> &
  Partial<Pick<ScenarioResult, "source" | "harm">>;

/**
 * Who the scenario is that is being registered: `title` begins with its id, and the nearest caller outside of `library`
 * says where it stands.
 */
export function aboutCaller(title: string, library: string): About {
  const isCaller = (file: string) => isAbsolute(file) && file !== library && file !== import.meta.path;
  const caller = callSites().find((site) => isCaller(site.getFileName() ?? ""));
  const file = caller?.getFileName() ?? "";
  return {
    suite: basename(dirname(file)),
    id: title.split(" ")[0] ?? title,
    title,
    file: relative(ROOT, file),
    line: caller?.getLineNumber() ?? 0,
  };
}

/** Who called, the nearest first. As data: in the text of a stack trace a path may look like anything. */
function callSites(): NodeJS.CallSite[] {
  const usual = Error.prepareStackTrace;
  try {
    Error.prepareStackTrace = (_, sites) => sites;
    return new Error().stack as unknown as NodeJS.CallSite[];
  } finally {
    Error.prepareStackTrace = usual;
  }
}

/** The scenarios of this process that have begun and not ended. */
const underWay = new Set<ScenarioResult>();

/** Records of each scenario that is under way that the run cannot go on. Returns the first of them. */
export function recordAbandoned(reason: string): ScenarioResult | undefined {
  for (const result of underWay) {
    Object.assign(result, { verdict: "error", reason, ms: Math.round((now() - result.at) * 10) / 10 });
    record({ kind: "scenario", scenario: result });
  }
  return underWay.values().next().value;
}

/** The record of a scenario that begins now. */
export function begun(about: About): ScenarioResult {
  return {
    ...about,
    verdict: "pass",
    reason: "",
    at: now(),
    ms: 0,
    source: about.source ?? "",
    harm: about.harm ?? "",
    expected: "",
    seen: "",
    stack: 0,
    sandboxes: [],
    logs: { gateway: [], driver: [] },
    engine: [],
    engineCalls: [],
  };
}

/** Records of a test that the pattern of `-t`, as `bun harness.ts test` hands it on, leaves it out. Returns whether it does not. */
export function recordSelection(title: string): boolean {
  const { OPENSHELL_E2E_PATTERN: pattern } = process.env;
  const selected = !pattern || new RegExp(pattern).test(title);
  if (!selected) record({ kind: "unselected", title });
  return selected;
}

/** Records a scenario that is not run. */
export function recordSkip(about: About, reason: string): void {
  record({ kind: "scenario", scenario: { ...begun(about), verdict: "skip", reason } });
}

/**
 * Runs a scenario and records what came of it; what it throws is thrown on. Of what has no id nothing is
 * recorded: unit tests that stand where scenarios stand belong into no report.
 * @param work may fill in what it learns: sandboxes, logs, and another verdict than pass.
 */
export async function recorded(about: About, work: (result: ScenarioResult) => Promise<void>): Promise<void> {
  const result = begun(about);
  const isScenario = /^[A-Z]{2}-\d+$/.test(about.id);
  if (isScenario) {
    underWay.add(result);
    record({ kind: "running", scenario: result });
  }
  try {
    await work(result);
  } catch (thrown) {
    // What is thrown on is printed, and written to bun's own report, as it is.
    const error = readableError(thrown);
    Object.assign(result, { verdict: "fail", reason: error.message, ...finding(error.message) });
    throw error;
  } finally {
    underWay.delete(result);
    result.ms = Math.round((now() - result.at) * 10) / 10;
    if (isScenario) record({ kind: "scenario", scenario: result });
  }
}

/** What was expected and what was seen, where the message of an assertion or of a check says so. */
export function finding(message: string): Pick<ScenarioResult, "expected" | "seen"> {
  const [, expected = ""] =
    /^(?:Expected(?: substring| pattern| length)?:|expected) (.*)$/m.exec(message) ?? [];
  const [, seen = ""] =
    /^(?:Received(?: message)?:|[ \t]{0,40}saw|[ \t]{0,40}last seen:) ?(.*)$/m.exec(message) ?? [];
  const diff = expected ? undefined : diffOf(message);
  if (!diff) return { expected, seen };
  const side = (sign: string) =>
    diff
      .filter((line) => line.startsWith(sign))
      .map((line) => line.slice(1).trim().replace(/,$/, ""))
      .join(", ");
  return { expected: side("-"), seen: side("+") };
}
