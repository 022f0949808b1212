// SPDX-License-Identifier: Apache-2.0

/** What a scenario's evidence leaves out: what is about other scenarios' sandboxes. */
import type { ScenarioResult } from "./model.ts";

/** Leaves out of logs and containers what is about these sandboxes alone, which are other scenarios'. */
export function leaveOut(
  others: Set<string>,
  { sandboxes, logs, engine }: Pick<ScenarioResult, "sandboxes" | "logs" | "engine">,
): void {
  const isOthers = (line: string) =>
    line.match(SANDBOX_ID)?.some((id) => others.has(id)) && !sandboxes.some((id) => line.includes(id));
  for (const lines of [logs.gateway, logs.driver, engine])
    lines.splice(0, lines.length, ...lines.filter((line) => !isOthers(line)));
}

const SANDBOX_ID = /\b[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\b/g;
