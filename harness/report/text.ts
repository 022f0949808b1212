// SPDX-License-Identifier: Apache-2.0

/** Words and numbers as all reports write them. */
import { spelledOut } from "../base/readable.ts";
import { PLACES } from "../base/settings.ts";
import { plural, took } from "../base/text.ts";
import type { Results, ScenarioResult, Verdict } from "./model.ts";

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
