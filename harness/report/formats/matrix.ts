// SPDX-License-Identifier: Apache-2.0

/** Which driver works with which gateway on which engine: one table made of several runs. */
import { cell } from "./markdown.ts";
import { count, isRed, type Results, VERDICTS } from "../model.ts";
import { WORDS } from "../text.ts";

/**
 * A Markdown table with a row for each driver and engine, and a column for each gateway. A cell has a line for each
 * suite that ran with that combination; of several runs of a suite the latest counts.
 */
export function matrix(all: Results[]): string {
  const runs = all.toSorted((a, b) => (a.run.startedAt < b.run.startedAt ? -1 : 1));
  const gateways = [...new Set(runs.map(({ stack }) => stack.gateway.label))].toSorted(byName);
  const rows = Map.groupBy(runs, ({ stack }) => JSON.stringify([stack.driver.label, stack.engine.label]));
  const keys = [...rows.keys()].toSorted(byName);
  return [
    `| driver | engine | ${gateways.map((label) => `gateway ${cell(label)}`).join(" | ")} |`,
    `|---|---|${"---|".repeat(gateways.length)}`,
    ...keys.map((key) => {
      const [driver, engine] = JSON.parse(key) as [string, string];
      const cells = gateways.map((gateway) =>
        outcome((rows.get(key) ?? []).filter(({ stack }) => stack.gateway.label === gateway)),
      );
      return `| ${cell(driver)} | ${cell(engine)} | ${cells.join(" | ")} |`;
    }),
    "",
    ...notes(runs),
    "",
  ].join("\n");
}

const byName = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });

/** A line for each suite: "✅ external-podman 86", "❌ driver-contract 3 FAIL, 98 pass". */
function outcome(runs: Results[]): string {
  const suites = new Map<string, { line: string }>();
  for (const { scenarios, run } of runs)
    for (const [suite, of] of Map.groupBy(scenarios, (scenario) => scenario.suite)) {
      const counts = count(of);
      const red = of.some(({ verdict }) => isRed(verdict));
      const words = VERDICTS.toSorted((a, b) => Number(isRed(b)) - Number(isRed(a)))
        .filter((verdict) => counts[verdict] > 0)
        .map((verdict) => `${counts[verdict]} ${WORDS[verdict]}`);
      const mark = red || run.cutOff ? "❌" : counts.pass === 0 ? "⚠️" : "✅";
      suites.set(suite, {
        line: `${mark} ${cell(suite)}: ${words.join(", ")}${run.cutOff ? ", cut off" : ""}`,
      });
    }
  return suites.size > 0 ? [...suites.values()].map(({ line }) => line).join("<br>") : "not run";
}

/** A fake proves nothing of OpenShell; the table alone would hide where one stood. */
function notes(runs: Results[]): string[] {
  const supervisors = [...new Set(runs.map(({ stack }) => stack.supervisor.label))];
  const fakes = runs.some(({ stack }) => Object.values(stack).some(({ real }) => !real));
  return [
    `Supervisor: ${supervisors.map(cell).join("; ")}.`,
    ...(fakes
      ? ["Where a fake stood, a green cell proves the harness and its scenarios, not OpenShell."]
      : []),
  ];
}
