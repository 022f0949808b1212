// SPDX-License-Identifier: Apache-2.0

/** What a run of the checks says: on the terminal, and as a table for a driver's README. */
import { indent, plural } from "../base/text.ts";
import { again } from "../report/explain.ts";
import { cell, text } from "../report/formats/markdown.ts";
import { readable } from "../base/readable.ts";
import type { Judged } from "./judge.ts";
import type { Identity } from "./versions.ts";

const MARKS = {
  pass: "pass",
  fail: "FAIL",
  known: "known",
  skip: "skip",
  older: "older",
  error: "ERROR",
} as const;
const VERDICTS = ["pass", "fail", "known", "older", "skip", "error"] as const;
const SHOWN_CALLS = 12;

/** One line: verdict, id, level, rule and time. */
export function oneLine({ verdict, reason, check, ms, left, notRun }: Judged): string {
  const aside = notRun || ["skip", "older", "known"].includes(verdict) ? ` (${firstLine(reason)})` : "";
  const leaves = left.length > 0 ? " and leaves something behind" : "";
  const { id, level, rule } = check;
  return `${MARKS[verdict].padEnd(5)} ${id.padEnd(6)} ${level.padEnd(6)} ${rule}${leaves}${aside} [${Math.round(ms)} ms]`;
}

/** The checks that were not run, a line for each reason: one cause is told once. */
export function notRunLines(outcomes: Judged[]): string[] {
  const reasons = Map.groupBy(
    outcomes.filter(({ notRun }) => notRun),
    ({ reason }) => reason,
  );
  return [...reasons].map(([reason, all]) => {
    const [first, last] = [all[0]!.check.id, all.at(-1)!.check.id];
    const which = first === last ? first : `${plural(all.length, "check")} from ${first} to ${last}`;
    return `${MARKS.error} ${which} ${reason}`;
  });
}

/**
 * All that is known of a check that did not pass: the rule and its source, what was seen, the calls, and what next.
 * @param flags what `check` was told of the driver, as a shell takes it: another driver would say something else
 */
export function explanation({ check, verdict, reason, evidence, left }: Judged, flags = ""): string {
  const calls = evidence.slice(-SHOWN_CALLS);
  const cut = evidence.length - calls.length;
  return [
    `${MARKS[verdict]} ${check.id} ${check.level} ${check.rule}`,
    `  source: ${check.source}`,
    `  users:  ${check.harm}`,
    ...(reason ? [indent(reason, "  ")] : []),
    ...left.map((line) => `  left behind: ${line}`),
    ...(calls.length > 0 ? [`  calls:${cut > 0 ? ` (${cut} earlier ones are not shown)` : ""}`] : []),
    ...calls.map((call) => `    ${call}`),
    `  next:   ${NEXT[verdict === "error" ? "error" : "fail"]}`,
    `  again:  ${again({ suite: "driver-contract", id: check.id })}${flags && ` ${flags}`}`,
  ].join("\n");
}

const NEXT = {
  fail: "start the driver in a debugger, and name its socket in the line below: `--socket PATH`, in place of any `--driver`",
  error: "nothing is known of the rule: mend what is named above, and ask again",
} as const;

/** Counts by group and verdict. */
export function countsTable(outcomes: Judged[]): string {
  const groups = [...new Set(outcomes.map(({ check }) => check.group))];
  const count = (group: string | undefined, verdict: string) =>
    outcomes.filter((one) => one.verdict === verdict && (!group || one.check.group === group)).length;
  const row = (name: string, group?: string) =>
    [name.padEnd(28), ...VERDICTS.map((verdict) => String(count(group, verdict) || "-").padStart(6))].join(
      "",
    );
  const head = ["".padEnd(28), ...VERDICTS.map((verdict) => MARKS[verdict].padStart(6))].join("");
  return [head, ...groups.map((group) => row(group, group)), row("all")].join("\n");
}

/** The last line: `driver-contract: 98 passed, 0 failed, …`. */
export function summary(outcomes: Judged[]): string {
  const of = (verdict: string) => outcomes.filter((one) => one.verdict === verdict).length;
  const rest = (["known", "older", "error"] as const).flatMap((verdict) =>
    of(verdict) > 0 ? [`, ${WORDS[verdict](of(verdict))}`] : [],
  );
  return `driver-contract: ${of("pass")} passed, ${of("fail")} failed, ${of("skip")} skipped${rest.join("")}`;
}

const WORDS = {
  known: (count: number) => `${count} known failing`,
  older: (count: number) => `${count} of a newer contract`,
  error: (count: number) => plural(count, "error"),
} as const;

/**
 * The driver's conformance as Markdown, for its README. What was not asked, or could not be, is not said to be kept.
 * @param all how many rules there are
 */
export function markdown(outcomes: Judged[], all: number, driver: Identity, date: Date): string {
  const levels = (["MUST", "SHOULD"] as const).map((level) => {
    const of = (...verdicts: Judged["verdict"][]) =>
      outcomes.filter(({ check, verdict }) => check.level === level && verdicts.includes(verdict)).length;
    return `${of("pass")} ${level} rules kept, ${of("fail", "known")} broken, ${of("older", "skip", "error")} not checked`;
  });
  const asked = outcomes.length < all ? [`Only ${outcomes.length} of ${all} rules were asked.`] : [];
  const note = ({ verdict, reason }: Judged) => (verdict === "pass" ? "" : cell(readable(firstLine(reason))));
  return [
    `## Contract conformance of ${text(readable(`${driver.name} ${driver.version}`))}`,
    "",
    ...asked,
    `${levels.join("; ")}. Contract ${driver.contract}: serves ${driver.serves}.`,
    `Checked on ${date.toISOString().slice(0, 10)} by \`bun harness.ts check\`.`,
    "",
    "| rule | level | verdict | |",
    "|---|---|---|---|",
    ...outcomes.map(
      (one) =>
        `| ${one.check.id} ${cell(one.check.rule)} | ${one.check.level} | ${MARKS[one.verdict]} | ${note(one)} |`,
    ),
    "",
  ].join("\n");
}

const firstLine = (text: string): string => text.split("\n")[0] ?? "";
