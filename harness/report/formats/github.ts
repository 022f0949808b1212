// SPDX-License-Identifier: Apache-2.0

/** What GitHub Actions shows of a run: the step's summary, and annotations at the scenarios that failed. */
import { explain } from "../explain.ts";
import { aside, contractTable, countsTable, failure, summary } from "./markdown.ts";
import { isRed, type Results } from "../model.ts";
import { plural } from "../../base/text.ts";
import { sentenceOf } from "../text.ts";

/** A step's summary may have 1 MiB; GitHub drops one that is longer, whole. */
export const SUMMARY_BYTES = 1_000_000;
/** GitHub shows so many errors a step, and drops the rest in silence. */
export const ANNOTATIONS = 10;

/** Markdown for $GITHUB_STEP_SUMMARY: the summary, then failures, as many as there is room for, then the rest. */
export function stepSummary(results: Results): string {
  const head = [...summary(results), ...countsTable(results)];
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  const checks = results.scenarios.filter(({ suite }) => suite === "driver-contract");
  const tail = [...aside(results), ...contractTable(checks), ""];
  let room = SUMMARY_BYTES - bytes(head) - bytes(tail) - 500;
  const shown: string[] = [];
  let count = 0;
  for (const scenario of red) {
    const lines = failure(scenario, results);
    room -= bytes(lines);
    if (room < 0) break;
    shown.push(...lines);
    count++;
  }
  if (count < red.length)
    shown.push(`…and ${plural(red.length - count, "failure")} more: see the HTML report.`);
  const failures = red.length > 0 ? ["", "### Failures", "", ...shown] : [];
  const whole = [...head, ...failures, ...tail];
  // A contract with very long reasons: what is first counts most.
  return bytes(whole) <= SUMMARY_BYTES
    ? whole.join("\n")
    : [...head, ...failures.slice(0, 200), ""].join("\n");
}

const bytes = (lines: string[]): number => Buffer.byteLength(lines.join("\n")) + 1;

/** `::error …` lines for the log of a step: each failure at its file and line, with whom it points to. */
export function annotations(results: Results): string[] {
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  const room = red.length > ANNOTATIONS ? ANNOTATIONS - 1 : ANNOTATIONS;
  const lines = red.slice(0, room).map((scenario) => {
    const { culprit, sentence, lines: shown, advice } = explain(scenario, results);
    const message = [
      `${culprit === "unclear" ? "" : `${culprit}: `}${sentence}`,
      ...shown,
      advice && `Next: ${advice}`,
    ];
    const at = `file=${property(scenario.file)},line=${scenario.line}`;
    const title = property(`${scenario.id} ${sentenceOf(scenario)}`);
    return `::error ${at},title=${title}::${data(message.filter(Boolean).join("\n"))}`;
  });
  if (red.length > room)
    lines.push(`::error ::${red.length - room} more failures; the step's summary has them all`);
  if (results.leftovers.length > 0)
    lines.push(
      `::warning ::${data(`Left behind, and removed:\n${results.leftovers.slice(0, 10).join("\n")}`)}`,
    );
  return lines;
}

/** What a workflow command carries: its escapes are those of the runner. */
const data = (text: string): string =>
  text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
const property = (text: string): string => data(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
