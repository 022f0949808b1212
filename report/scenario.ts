// SPDX-License-Identifier: Apache-2.0

/** A scenario as it is recorded: who it is, what came of it, and what a reader needs when it did not pass. */
import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import type { ScenarioResult } from "./model.ts";
import { now, record } from "./record.ts";

const ROOT = join(import.meta.dir, "..");
/** How many lines of each log a report keeps of a scenario. */
const LOG_LINES = 60;
/** A line may be written a little before or after what it tells of, in milliseconds. */
const MARGIN_MS = 100;

/** Who a scenario is. */
export type About = Pick<ScenarioResult, "suite" | "id" | "title" | "file" | "line"> &
  Partial<Pick<ScenarioResult, "source" | "harm">>;

/**
 * Who the scenario is that is being registered: `title` begins with its id, and the nearest caller outside of `library`
 * says where it stands.
 */
export function aboutCaller(title: string, library: string): About {
  const frames = [...(new Error().stack ?? "").matchAll(/\(?(\/[^():\n]+):(\d+):\d+\)?$/gm)];
  const caller = frames.find(([, file]) => file !== library && file !== import.meta.path);
  const [, file = "", line = "0"] = caller ?? [];
  return {
    suite: basename(dirname(file)),
    id: title.split(" ")[0] ?? title,
    title,
    file: relative(ROOT, file),
    line: Number(line),
  };
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

/** Records a scenario that is not run. */
export function recordSkip(about: About, reason: string): void {
  record({ kind: "scenario", scenario: { ...begun(about), verdict: "skip", reason } });
}

/**
 * Runs a scenario and records what came of it; what it throws is thrown on.
 * @param work may fill in what it learns: sandboxes, logs, and another verdict than pass.
 */
export async function recorded(about: About, work: (result: ScenarioResult) => Promise<void>): Promise<void> {
  const result = begun(about);
  record({ kind: "running", scenario: result });
  try {
    await work(result);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    Object.assign(result, { verdict: "fail", reason: message, ...finding(message) });
    throw error;
  } finally {
    result.ms = Math.round((now() - result.at) * 10) / 10;
    record({ kind: "scenario", scenario: result });
  }
}

/** What was expected and what was seen, where the message of an assertion or of a check says so. */
function finding(message: string): Pick<ScenarioResult, "expected" | "seen"> {
  const [, expected = ""] =
    /^(?:Expected(?: substring| pattern| length)?:|expected) (.*)$/m.exec(message) ?? [];
  const [, seen = ""] = /^(?:Received(?: message)?:|\s*saw|\s*last seen:) ?(.*)$/m.exec(message) ?? [];
  return { expected, seen };
}

/**
 * The lines of a log that were written between two times, in milliseconds since 1970; the last few if none bears one.
 * @param clean makes a line fit to be shown.
 */
export function excerpt(log: string, from: number, to: number, clean: (text: string) => string): string[] {
  if (!existsSync(log)) return [];
  const lines = clean(readFileSync(log, "utf8")).trimEnd().split("\n");
  let inside = false;
  const within = lines.filter((line) => {
    const written = Date.parse(/\d{4}-\d\d-\d\dT[\d:.]+Z/.exec(line)?.[0] ?? "");
    // A line without a time of its own belongs to the one before.
    if (!Number.isNaN(written)) inside = written >= from - MARGIN_MS && written <= to + MARGIN_MS;
    return inside;
  });
  return within.slice(-LOG_LINES);
}
