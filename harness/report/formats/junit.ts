// SPDX-License-Identifier: Apache-2.0

/**
 * JUnit XML, as Jenkins, GitLab and others read it; valid against Jenkins' schema (fixtures/jenkins-junit.xsd). What is
 * known to fail, and what an older contract does not have, are skips there: neither turns a build red.
 */
import { PLACES } from "../../base/settings.ts";
import { messageOf } from "../explain.ts";
import type { Results, ScenarioResult, Verdict } from "../model.ts";
import { caveat, escaped, sentenceOf, stackLine } from "../text.ts";
import { clipped } from "../../base/text.ts";
import { explainOnTerminal } from "../terminal.ts";

export function junit(results: Results): string {
  const suites = Map.groupBy(results.scenarios, ({ suite }) => suite);
  const all = totals(results.scenarios);
  return [
    `<?xml version="1.0" encoding="UTF-8"?>`,
    `<testsuites name="openshell-e2e ${escaped(results.run.id)}" ${all} time="${seconds(results.run.ms)}">`,
    ...[...suites].map(([name, scenarios]) => suiteXml(name, scenarios, results)),
    `</testsuites>`,
    "",
  ].join("\n");
}

/** In which of JUnit's counts a verdict belongs. */
const KIND: Record<Verdict, "passed" | "failure" | "error" | "skipped"> = {
  pass: "passed",
  fail: "failure",
  error: "error",
  cut: "error",
  skip: "skipped",
  known: "skipped",
  older: "skipped",
};
/** Before the reason of a skip that is none of the scenario's own. */
const PREFIX: Partial<Record<Verdict, string>> = { known: "known to fail: ", older: "older contract: " };

function totals(scenarios: ScenarioResult[]): string {
  const of = (kind: string) => scenarios.filter(({ verdict }) => KIND[verdict] === kind).length;
  return `tests="${scenarios.length}" failures="${of("failure")}" errors="${of("error")}" disabled="${of("skipped")}"`;
}

function suiteXml(name: string, scenarios: ScenarioResult[], results: Results): string {
  const time = scenarios.reduce((sum, { ms }) => sum + ms, 0);
  const skipped = scenarios.filter(({ verdict }) => KIND[verdict] === "skipped").length;
  return [
    `  <testsuite name="${escaped(name)}" ${totals(scenarios)} skipped="${skipped}" time="${seconds(time)}" timestamp="${escaped(results.run.startedAt)}">`,
    `    <properties>`,
    ...properties(results).map(([key, value]) => `      <property name="${key}" value="${escaped(value)}"/>`),
    `    </properties>`,
    ...scenarios.map((scenario) => caseXml(scenario, results)),
    ...(results.leftovers.length > 0
      ? [
          `    <system-err>${escaped(`Left behind, and removed:\n${results.leftovers.join("\n")}`)}</system-err>`,
        ]
      : []),
    `  </testsuite>`,
  ].join("\n");
}

function properties({ run, stack, machine, contract }: Results): [string, string][] {
  return [
    ["run", run.id],
    ["command", run.command],
    ["contract", contract],
    ["cut off", String(run.cutOff)],
    ...(run.unselected ? ([["not selected by -t", String(run.unselected)]] as [string, string][]) : []),
    ...PLACES.flatMap((place): [string, string][] => [
      [place, stack[place].label],
      [`${place}.real`, String(stack[place].real)],
      ...(stack[place].image
        ? ([[`${place}.image`, imageName(stack[place].image)]] as [string, string][])
        : []),
    ]),
    [
      "machine",
      `${machine.os} ${machine.arch}, ${machine.cpus} CPUs, ${machine.memoryMb} MB, bun ${machine.bun}`,
    ],
  ];
}

/** An image with its digest, which alone says what was run. */
export const imageName = ({ reference, digest }: { reference: string; digest: string }): string =>
  digest ? `${reference}@${digest}` : reference;

function caseXml(scenario: ScenarioResult, results: Results): string {
  const { suite, verdict, file, line, ms, reason } = scenario;
  const kind = KIND[verdict];
  const name = escaped(`${scenario.id} ${sentenceOf(scenario)}`);
  const open = `    <testcase name="${name}" classname="${escaped(`${suite}.${baseName(file)}`)}" time="${seconds(ms)}" status="${verdict}"`;
  if (kind === "passed") return `${open}/>`;
  const where = `${file}:${line}`;
  const message = messageOf(scenario) || verdict;
  const body =
    kind === "skipped"
      ? [`      <skipped>${escaped(`${PREFIX[verdict] ?? ""}${clipped(reason, 500)}`)}</skipped>`]
      : [
          `      <${kind} type="${verdict}" message="${escaped(clipped(message))}">${escaped(`${where}\n${message}`)}</${kind}>`,
          `      <system-out>${escaped(explanation(scenario, results))}</system-out>`,
        ];
  return [`${open}>`, ...body, `    </testcase>`].join("\n");
}

const explanation = (scenario: ScenarioResult, results: Results): string =>
  [
    explainOnTerminal(scenario, results.calls, results),
    "",
    stackLine(results),
    ...[caveat(results)].filter(Boolean),
  ].join("\n");

const seconds = (ms: number): string => (ms / 1000).toFixed(3);
const baseName = (file: string): string =>
  file
    .split("/")
    .at(-1)
    ?.replace(/(?:\.test)?\.ts$/, "") ?? file;
