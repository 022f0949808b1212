// SPDX-License-Identifier: Apache-2.0

/** Words and numbers as all reports write them. */
import { PLACES } from "../harness.ts";
import type { EngineRule } from "../keeper/engine-proxy.ts";
import type { Rule } from "../keeper/tap.ts";
import { codeName } from "../proto/contract.ts";
import type { Results, ScenarioResult, Verdict } from "./model.ts";
import { spelledOut } from "./readable.ts";

/** A verdict as a reader sees it: what asks for attention is in capitals. */
export const WORDS: Record<Verdict, string> = {
  pass: "pass",
  fail: "FAIL",
  known: "known",
  older: "older",
  skip: "skip",
  error: "ERROR",
  cut: "CUT OFF",
};

/** What a verdict means, for those who meet it for the first time. */
export const MEANINGS: Record<Verdict, string> = {
  pass: "the requirement is met",
  fail: "the requirement is broken",
  known: "it fails, as scenarios/known-failing.toml says",
  older: "the driver keeps an older contract, which has no such rule",
  skip: "it was not run; the reason is given",
  error: "the harness or the machine failed, not the subject",
  cut: "the run ended in the middle of it",
};

/** Whether to write in colours: to a terminal, or to a process that hands them on to one, unless asked not to. */
export const inColour = ({ isTTY }: { isTTY?: boolean }): boolean =>
  (isTTY === true || process.env.FORCE_COLOR === "1") &&
  !process.env.NO_COLOR &&
  !process.env.CI &&
  process.env.TERM !== "dumb";

/** The columns of the terminal to which a stream leads, by its own word or by that of the process that hands it on. */
export const widthOf = ({ columns }: { columns?: number }): number | undefined =>
  columns || Number(process.env.OPENSHELL_E2E_COLUMNS) || undefined;

/** A duration as a person says it: "12 ms", "1.3 s", "4 min 05 s". */
export function took(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** How long a scenario took; where it failed long before its end, after how long: "failed after 4.0 s, cleaning up 1 min 00 s". */
export function tookInAll({ ms, failedMs = ms }: Pick<ScenarioResult, "ms" | "failedMs">): string {
  return ms - failedMs < 1000
    ? took(ms)
    : `failed after ${took(failedMs)}, cleaning up ${took(ms - failedMs)}`;
}

/** " · failed 2 of 20 times", of a scenario that ran more than once. */
export const timesOf = ({ times }: Pick<ScenarioResult, "times">): string =>
  times ? ` · failed ${times.failed} of ${times.run} times` : "";

/** "2026-11-24 12:00:07 UTC": with seconds, so that it can be found in a log. */
export const startOf = ({ startedAt }: Results["run"]): string =>
  `${startedAt.slice(0, 19).replace("T", " ")} UTC`;

/** "+1.20 s" since a scenario's start; a call may have begun before it. */
export const offset = (ms: number): string => `${ms < 0 ? "−" : "+"}${(Math.abs(ms) / 1000).toFixed(2)} s`;

/** An argument as a shell takes it, so that a command line can be copied. */
export const shellQuoted = (argument: string): string =>
  /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", String.raw`'\''`)}'`;

/** "3 scenarios", "1 scenario". */
export const plural = (count: number, one: string, many = `${one}s`): string =>
  `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** The first line, cut to so many characters. */
export function clipped(text: string, length = 200): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > length ? `${line.slice(0, length - 1)}…` : line;
}

/** What was done to a stack. The rule of a fault, which is recorded as it is, becomes words. */
export function markWords(what: string): string {
  const [, fault = "", json = ""] = /^(fault [^:]+: )(\{.*\})$/s.exec(what) ?? [];
  try {
    return json ? `${fault}${ruleWords(JSON.parse(json))}` : what;
  } catch {
    return what;
  }
}

function ruleWords(rule: Partial<Rule & EngineRule>): string {
  const { delayMs, fail, hang, drop, cut, replace, duplicate, reorder, end, response, from, times } = rule;
  const words = [
    delayMs !== undefined && `delay ${took(delayMs)}`,
    fail && `fail with ${fail.status ?? codeName(fail.code)}${fail.message && ` "${fail.message}"`}`,
    hang && "hang",
    drop && "drop connections",
    cut && "break off the answer",
    replace && `say ${JSON.stringify(replace.to)} instead of ${JSON.stringify(replace.from)}`,
    duplicate && "duplicate",
    reorder && "reorder",
    end && `end after ${plural(end.after, "event")}${end.code ? ` with ${codeName(end.code)}` : ""}`,
    response && `answer with ${JSON.stringify(response)}`,
  ];
  const which = [
    from !== undefined && `from call ${from}`,
    times !== undefined && (times === 1 ? "once" : `${times} times`),
  ];
  return [...words, ...which].filter(Boolean).join(", ");
}

/** The sentence of a title, without the id that it begins with. */
export const sentenceOf = ({ id, title }: { id: string; title: string }): string =>
  title.startsWith(`${id} `) ? title.slice(id.length + 1) : title;

/** What stood in each place, in one line, as the first line of a run says it. */
export const stackLine = ({ stack }: Results): string =>
  PLACES.map((place) => `${place} ${stack[place].label}`).join(" · ");

/** What a run with these parts proves, if it is less than a reader may think; empty if all were real. */
export function caveat({ stack }: Results): string {
  const fakes = PLACES.filter((place) => !stack[place].real);
  if (fakes.length === 0) return "";
  if (fakes.length === PLACES.length)
    return "Everything was faked: this run proves the harness and its scenarios, not OpenShell.";
  return `Faked: ${fakes.join(", ")}. What this run shows holds for the real parts alone.`;
}

/** What a run came to, in one line: "86 scenarios: 74 pass, 12 FAIL (106 not selected by -t)". */
export function countsLine({ counts, scenarios, run }: Results): string {
  const parts = Object.entries(counts).flatMap(([verdict, count]) =>
    count > 0 ? [`${count} ${WORDS[verdict as Verdict]}`] : [],
  );
  const left = unselectedWords(run);
  return `${plural(scenarios.length, "scenario")}${parts.length > 0 ? `: ${parts.join(", ")}` : ""}${left && ` (${left})`}`;
}

/** "106 not selected by -t"; empty where all were. */
export const unselectedWords = ({ unselected = 0 }: Results["run"]): string =>
  unselected > 0 ? `${unselected.toLocaleString("en")} not selected by -t` : "";

/** Text as content or attribute of XML and HTML; characters that XML 1.0 cannot hold, among others, are spelled out. */
export const escaped = (text: string): string =>
  spelledOut(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
