// SPDX-License-Identifier: Apache-2.0

/** A run as Markdown: for a pull request, an issue, or, with the table of the driver contract, for a driver's README. */
import { PLACES } from "../../base/settings.ts";
import { again, explain } from "../explain.ts";
import { imageName } from "./junit.ts";
import { isRed, type Results, type ScenarioResult, type Verdict, VERDICTS } from "../model.ts";
import { explainOnTerminal } from "../terminal.ts";
import { caveat, countsLine, MEANINGS, sentenceOf, startOf, WORDS } from "../text.ts";
import { clipped, plural, took } from "../../base/text.ts";

/** Summary, failures, and what did not pass for another reason; then the driver's contract, rule by rule. */
export function markdown(results: Results): string {
  return [
    ...summary(results),
    ...failures(results),
    ...aside(results),
    ...contractTable(results.scenarios.filter(({ suite }) => suite === "driver-contract")),
    "",
  ].join("\n");
}

/** Whether it is well, in one word and one line, and what ran. */
export function summary(results: Results): string[] {
  const { run, machine, stack, leftovers, counts } = results;
  const failed = counts.fail + counts.error;
  const isBad = failed + counts.cut > 0 || run.cutOff || leftovers.length > 0;
  const mark = isBad ? "❌" : counts.pass === 0 ? "⚠️" : "✅";
  // Nothing is known of what was cut off.
  const cut = counts.cut > 0 ? `, ${counts.cut} cut off` : "";
  const headline =
    failed > 0
      ? `${plural(failed, "failure")} in ${plural(results.scenarios.length, "scenario")}${cut}`
      : counts.pass + counts.cut === 0
        ? "nothing was proven"
        : `${counts.pass} passed${cut}`;
  return [
    `## ${mark} OpenShell driver harness: ${headline}`,
    "",
    `${countsLine(results)} · ${took(run.ms)} · ${startOf(run)} · contract ${text(results.contract)}`,
    ...(run.cutOff ? ["", "**The run was cut off**: this is what was known by then."] : []),
    "",
    "| place | what stood there | image |",
    "|---|---|---|",
    ...PLACES.map((place) => {
      const { real, label, image } = stack[place];
      const what = real ? `**${cell(label)}**` : `_${cell(label)}_`;
      return `| ${place} | ${what} | ${image ? code(imageName(image)).replaceAll("|", String.raw`\|`) : ""} |`;
    }),
    "",
    ...(caveat(results) ? [`> ${caveat(results)}`, ""] : []),
    `${code(run.command)} on ${text(`${machine.os} ${machine.arch}`)}, ${plural(machine.cpus, "CPU")}, bun ${text(machine.bun)}`,
    ...(leftovers.length > 0
      ? [
          "",
          `**Left behind, and removed by force** (${leftovers.length}):`,
          "",
          ...fence(leftovers.slice(0, 20)),
        ]
      : []),
  ];
}

/** Each failure with its culprit in a line, and its explanation folded beneath. */
export function failures(results: Results): string[] {
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  if (red.length === 0) return [];
  return ["", "### Failures", "", ...red.flatMap((scenario) => failure(scenario, results))];
}

export function failure(scenario: ScenarioResult, results: Results): string[] {
  const { culprit, sentence } = explain(scenario, results);
  const who = culprit === "unclear" ? "" : `**${culprit}**: `;
  return [
    `- ${WORDS[scenario.verdict]} **${text(scenario.id)}** ${text(sentenceOf(scenario))}  `,
    `  ${who}${text(sentence)}  `,
    `  ${code(again(scenario))}`,
    "  <details><summary>Explanation</summary>",
    "",
    ...fence(explainOnTerminal(scenario, results.calls, results).split("\n")).map((line) => `  ${line}`),
    "",
    "  </details>",
    "",
  ];
}

const ASIDE: Verdict[] = ["known", "older", "skip"];

/** What did not pass and is no failure, with the reason. */
export function aside({ scenarios }: Results): string[] {
  return ASIDE.flatMap((verdict) => {
    const of = scenarios.filter((scenario) => scenario.verdict === verdict);
    if (of.length === 0) return [];
    return [
      "",
      `<details><summary>${of.length} ${WORDS[verdict]}: ${MEANINGS[verdict]}</summary>`,
      "",
      "| | scenario | reason |",
      "|---|---|---|",
      ...of.map((each) => `| ${cell(each.id)} | ${cell(sentenceOf(each))} | ${cell(clipped(each.reason))} |`),
      "",
      "</details>",
    ];
  });
}

/** The driver's conformance, rule by rule. Nothing without checks of the contract. */
export function contractTable(checks: ScenarioResult[]): string[] {
  if (checks.length === 0) return [];
  const asked = checks.filter(({ verdict }) => !["skip", "older", "cut"].includes(verdict));
  const kept = asked.filter(({ verdict }) => verdict === "pass");
  const note = ({ verdict, reason }: ScenarioResult) => (verdict === "pass" ? "" : cell(clipped(reason)));
  return [
    "",
    "### The driver's contract",
    "",
    `${kept.length} of ${asked.length} rules kept, ${checks.length - asked.length} not asked.`,
    "",
    "| rule | | verdict | |",
    "|---|---|---|---|",
    ...checks.map(
      (check) =>
        `| ${cell(check.id)} | ${cell(sentenceOf(check))} | ${WORDS[check.verdict]} | ${note(check)} |`,
    ),
  ];
}

/** Counts by suite and verdict. */
export function countsTable({ scenarios }: Results): string[] {
  const used = VERDICTS.filter((verdict) => scenarios.some((scenario) => scenario.verdict === verdict));
  const row = (name: string, of: ScenarioResult[]) =>
    `| ${cell(name)} | ${used.map((verdict) => of.filter((one) => one.verdict === verdict).length || "").join(" | ")} |`;
  return [
    "",
    `| suite | ${used.map((verdict) => WORDS[verdict]).join(" | ")} |`,
    `|---|${used.map(() => "---:|").join("")}`,
    ...[...Map.groupBy(scenarios, ({ suite }) => suite)].map(([suite, of]) => row(suite, of)),
  ];
}

/** Text that Markdown shall take as it is, and in which nobody is mentioned: what stands behind an @ is cut off from it. */
export const text = (plain: string): string =>
  plain
    .replaceAll("&", "&amp;")
    .replaceAll(/[\\`*_[\]<>#~|$]/g, String.raw`\$&`)
    .replaceAll("@", "@&#8203;")
    .replaceAll("\n", " ");

/** The same in a cell of a table. */
export const cell = (plain: string): string => text(plain);

/** Code in a line, though it may hold backticks. */
function code(plain: string): string {
  const line = plain.replaceAll("\n", " ");
  const ticks = "`".repeat(longestRun(line) + 1);
  return line.includes("`") ? `${ticks} ${line} ${ticks}` : `${ticks}${line}${ticks}`;
}

/** Lines as they are, whatever they hold. */
function fence(lines: string[]): string[] {
  const ticks = "`".repeat(Math.max(3, longestRun(lines.join("\n")) + 1));
  return [`${ticks}text`, ...lines, ticks];
}

const longestRun = (of: string): number =>
  (of.match(/`+/g) ?? []).reduce((longest, { length }) => Math.max(longest, length), 0);
