// SPDX-License-Identifier: Apache-2.0

/** CTRF JSON, the Common Test Report Format (https://ctrf.io), which many dashboards and pull-request bots read. */
import { PLACES } from "../../base/settings.ts";
import { again, explain, messageOf } from "../explain.ts";
import { type Results, type ScenarioResult, type Verdict, isRed } from "../model.ts";
import { explainOnTerminal } from "../terminal.ts";
import { caveat, sentenceOf, stackLine } from "../text.ts";
import { clipped } from "../../base/text.ts";

/** Of the format, as its schema counts. */
const SPEC_VERSION = "0.0.0";

/** What CTRF calls a verdict; `rawStatus` has ours. */
const STATUS: Record<Verdict, "passed" | "failed" | "skipped" | "other"> = {
  pass: "passed",
  fail: "failed",
  error: "failed",
  cut: "failed",
  skip: "skipped",
  older: "skipped",
  known: "other",
};

export function ctrf(results: Results): string {
  const { run, machine, scenarios } = results;
  const start = Date.parse(run.startedAt);
  const of = (status: string) => scenarios.filter(({ verdict }) => STATUS[verdict] === status).length;
  const report = {
    reportFormat: "CTRF",
    specVersion: SPEC_VERSION,
    runId: run.id,
    timestamp: new Date(start + run.ms).toISOString(),
    generatedBy: "openshell-driver-harness",
    results: {
      tool: { name: "openshell-driver-harness", extra: { command: run.command, bun: machine.bun } },
      summary: {
        tests: scenarios.length,
        passed: of("passed"),
        failed: of("failed"),
        skipped: of("skipped"),
        pending: 0,
        other: of("other"),
        suites: new Set(scenarios.map(({ suite }) => suite)).size,
        start,
        stop: Math.round(start + run.ms),
        duration: Math.round(run.ms),
        extra: {
          counts: results.counts,
          unselected: run.unselected ?? 0,
          cutOff: run.cutOff,
          leftovers: results.leftovers,
        },
      },
      tests: scenarios.map((scenario) => test(scenario, results, start)),
      environment: {
        reportName: "openshell-e2e",
        osPlatform: machine.os,
        testEnvironment: stackLine(results),
        extra: {
          contract: results.contract,
          machine,
          caveat: caveat(results),
          stack: Object.fromEntries(PLACES.map((place) => [place, results.stack[place]])),
        },
      },
    },
  };
  return `${JSON.stringify(report, null, 2)}\n`;
}

function test(scenario: ScenarioResult, results: Results, start: number) {
  const { suite, id, verdict, at, ms, file, line, source, harm, expected, seen } = scenario;
  const red = isRed(verdict);
  const message = messageOf(scenario);
  return {
    testId: `${suite}/${id}`,
    name: `${id} ${sentenceOf(scenario)}`,
    status: STATUS[verdict],
    rawStatus: verdict,
    duration: Math.round(ms),
    start: Math.round(start + at),
    stop: Math.round(start + at + ms),
    suite: [suite],
    type: "e2e",
    filePath: file,
    line,
    ...(verdict !== "pass" && { message: clipped(message, 500) }),
    ...(red && {
      trace: message,
      stdout: explainOnTerminal(scenario, results.calls, results).split("\n"),
    }),
    extra: {
      ...(source && { source }),
      ...(harm && { harm }),
      ...(expected && { expected, seen }),
      ...(red && { explanation: explain(scenario, results), again: again(scenario) }),
    },
  };
}
